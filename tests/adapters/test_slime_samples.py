"""Trajectories as slime's samples: golden files for every way an episode ends, and what holds for any trajectory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings

from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.slime.samples import METADATA, filled, flat, is_scored, sample_dicts
from rollout_service.adapters.slime.types import types
from tests.support import slime, trajectories

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", slime.EPISODES)
def test_an_episode_becomes_the_samples_of_its_golden_file(name):
    assert sample_dicts(slime.EPISODES[name]) == json.loads((GOLDEN / f"slime_{name}.json").read_text())


def test_every_golden_file_is_tested():
    assert {path.stem for path in GOLDEN.glob("slime_*.json")} == {f"slime_{name}" for name in slime.EPISODES}


@pytest.mark.parametrize(
    ("name", "status", "removed", "scored"),
    [
        ("completed", "completed", False, True),
        ("truncated", "truncated", False, True),
        ("agent_error", "completed", False, True),
        ("prompt_too_long", "aborted", True, False),
        ("fault", "aborted", True, False),
        ("cancelled", "aborted", True, False),
        ("wall_time", "aborted", True, False),
    ],
)
def test_only_an_episode_with_a_reward_is_counted_and_only_sampled_tokens_are_trained(name, status, removed, scored):
    (sample,) = filled(slime.make_sample(), slime.EPISODES[name])
    assert sample.status is slime.status(status)
    assert (sample.remove_sample, is_scored(sample)) == (removed, scored)


def test_a_turn_s_weight_version_is_the_oldest_that_it_depends_on():
    trajectory = trajectories.make_trajectory()
    (segment,) = trajectory.segments
    first, second = segment.turns
    segment.weight_versions[first.start : first.end] = [3, 3, 4, 5]  # a weight update came in mid-turn
    segment.weight_versions[second.start : second.end] = 5
    second.prefix_version = 4  # and the next turn went on over keys and values from before it
    assert sample_dicts(trajectory)[0]["weight_versions"] == ["3", "4"]


def test_a_sample_keeps_its_identity_and_what_else_its_metadata_held():
    sample = slime.make_sample(index=11, group_index=4, session_id="s", label="l")
    (out,) = filled(sample, slime.EPISODES["completed"])
    assert (out.index, out.group_index, out.session_id, out.label, out.prompt) == (11, 4, "s", "l", "3")
    assert out.metadata["domain"] == "retail"
    assert out.metadata[METADATA]["outcome"] == "completed"
    assert METADATA not in sample.metadata, "the sample that slime gave stays as it was"


def test_an_aborted_sample_that_is_played_again_is_trained_on():
    (aborted,) = filled(slime.make_sample(index=3), slime.EPISODES["cancelled"])
    (again,) = filled(aborted, slime.EPISODES["completed"])
    assert (again.remove_sample, again.reward, again.rollout_id) == (False, 1.0, 3)
    assert again.metadata[METADATA]["outcome"] == "completed"


def test_siblings_share_a_rollout_id_and_the_seconds_count_once():
    first, second = filled(slime.make_sample(index=9), slime.EPISODES["two_segments"])
    assert first.rollout_id == second.rollout_id == 9
    assert (first.non_generation_time, second.non_generation_time) == (7.0, 0.0)
    assert first.reward == second.reward == 1.0


def test_siblings_of_a_sample_without_a_number_are_refused():
    with pytest.raises(TrainingDataError, match="neither index nor rollout_id"):
        filled(slime.make_sample(index=None), slime.EPISODES["two_segments"])


def test_a_sampled_token_without_a_log_prob_is_refused():
    broken = slime.episode(segments=[slime.segment()])
    broken.segments[0].logprobs[3] = float("nan")
    with pytest.raises(TrainingDataError, match="logprobs has no finite value for 1 of 3"):
        sample_dicts(broken)


def test_arrays_of_different_lengths_are_refused():
    broken = slime.episode(segments=[slime.segment()])
    broken.segments[0].weight_versions = broken.segments[0].weight_versions[:-1]
    with pytest.raises(TrainingDataError, match="tokens, mask, log-probs and versions"):
        sample_dicts(broken)


@given(trajectory=trajectories.trajectories())
@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
def test_any_trajectory_s_samples_are_aligned_and_lose_nothing(trajectory):
    for turn in trajectory.turns:
        turn.message_index = None
    assume(trajectory.outcome != "aborted" or trajectory.reward is None)
    samples = filled(slime.make_sample(index=1), trajectory)
    assert len({sample.rollout_id for sample in samples}) == 1
    for sample in samples:
        assert len(sample.loss_mask) == len(sample.rollout_log_probs) == sample.response_length > 0
        assert len(sample.tokens) > sample.response_length
        pairs = zip(sample.loss_mask, sample.rollout_log_probs, strict=True)
        assert all(logprob == 0.0 for mask, logprob in pairs if not mask)
        again = type(sample).from_dict(json.loads(json.dumps(sample.to_dict())))
        assert again.to_dict() == sample.to_dict()
    if not trajectory.is_scored:
        assert [(sample.remove_sample, sample.status.value) for sample in samples] == [(True, "aborted")]
    else:
        assert len(samples) == len(trajectory.segments)
        for sample, segment in zip(samples, trajectory.segments, strict=True):
            prompt = segment.token_ids[: segment.prompt_length].tolist()
            assert sample.tokens == prompt + segment.token_ids[segment.prompt_length :].tolist()
            assert sum(sample.loss_mask) == segment.policy_token_count
            assert len(sample.weight_versions) == len(segment.turns)


def test_without_slime_its_shapes_stand_in():
    names = {"tokens", "response_length", "loss_mask", "rollout_log_probs", "status", "reward", "remove_sample"}
    assert names <= types().sample().to_dict().keys()
    assert flat([[slime.make_sample()], [[slime.make_sample(), slime.make_sample()]]])[2].index == 0
