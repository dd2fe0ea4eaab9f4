"""An episode in which the policy never took a turn says nothing about it: whoever uses trajectories leaves it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout_service.adapters import verl
from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.slime import keep_informative, reward_post_process
from rollout_service.adapters.slime.samples import filled
from rollout_service.adapters.torch import collate_packed, collate_padded
from rollout_service.record.batch import TrajectoryBatch
from rollout_service.record.statistics import summarize
from rollout_service.record.trajectory import Outcome, Provenance, Trajectory
from tests.support import slime
from tests.support.trajectories import make_trajectory

NEW: dict[str, Any] = {"outcome": Outcome.TRUNCATED, "termination_reason": "context_length", "reward": None}
OLD: dict[str, Any] = {"outcome": Outcome.COMPLETED, "termination_reason": "user_stop", "reward": 0.0}
"""As older versions stored it: scored 0."""

pytestmark = pytest.mark.parametrize("silent", [NEW, OLD], ids=["new", "old"])

PLACES = {"pad_token_id": 0, "prompt_length": 8, "response_length": 32}


def group(silent: dict[str, Any]) -> list[Trajectory]:
    """Three members with rewards 1, 0 and 1, and between them one in which the policy never spoke."""
    members: list[dict[str, Any]] = [{"reward": 1.0}, {"reward": 0.0}, {**silent, "segments": []}, {"reward": 1.0}]
    own = [{"trajectory_id": f"t{n}", "group_id": "g", "sample_index": n} for n in range(len(members))]
    return [make_trajectory(**{**fields, **names}) for fields, names in zip(members, own, strict=True)]


def test_it_is_in_no_mean_and_no_baseline(silent: dict[str, Any]) -> None:
    batch = TrajectoryBatch(group(silent))
    without = batch.filter(lambda trajectory: bool(trajectory.turns))
    np.testing.assert_array_equal(batch.rewards, np.array([1, 0, np.nan, 1], np.float32))
    assert batch.group_statistics().scored.tolist() == [3] * 4
    assert batch.group_statistics().mean.tolist() == pytest.approx([2 / 3] * 4)
    assert batch.advantages()[[0, 1, 3]].tolist() == without.advantages().tolist()
    assert np.isnan(batch.advantages()[2])
    retail = summarize(batch).domains["retail"]
    assert (retail.episodes, retail.scored, retail.mean_reward) == (4, 3, pytest.approx(2 / 3))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_file_keeps_what_it_said_and_its_mean_leaves_it_out(
    silent: dict[str, Any], ending: str, tmp_path: Path
) -> None:
    TrajectoryBatch(group(silent)).save(tmp_path / f"x.{ending}")
    loaded = TrajectoryBatch.load(tmp_path / f"x.{ending}")
    assert loaded[2].reward == silent["reward"]
    assert [trajectory.is_scored for trajectory in loaded] == [True, True, False, True]


@pytest.mark.parametrize("collate", [lambda items, **more: collate_padded(items, 0, **more), collate_packed])
def test_torch_refuses_it_by_name_or_leaves_it_out(silent: dict[str, Any], collate: Any) -> None:
    with pytest.raises(TrainingDataError, match=rf"'t2': reward is {silent['reward']}"):
        collate([group(silent)])
    tensors = collate([group(silent)], unscored="mask")
    assert tensors["trajectory_index"].tolist() == [0, 1, 3]
    assert tensors["advantages"].tolist() == pytest.approx([0.7071, -1.4142, 0.7071], abs=1e-3)


@pytest.mark.parametrize("collate", [lambda items, **more: collate_padded(items, 0, **more), collate_packed])
def test_torch_takes_a_batch_of_nothing_else(silent: dict[str, Any], collate: Any) -> None:
    alone = make_trajectory(**silent, segments=[])
    tensors = collate([alone], unscored="mask")
    assert tensors["advantages"].tolist() == []
    assert not tensors["loss_mask"].any()


def test_verl_refuses_it_by_name_or_leaves_it_out(silent: dict[str, Any]) -> None:
    with pytest.raises(TrainingDataError, match=rf"'t2': reward is {silent['reward']}"):
        verl.data_proto(group(silent), **PLACES)
    tensors, others = verl.data_proto(group(silent), **PLACES, unscored="mask")
    assert others["trajectory_id"].tolist() == ["t0", "t1", "t3"]
    assert tensors["rm_scores"].sum(-1).tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(TrainingDataError, match=rf"'t2': reward is {silent['reward']}"):
        verl.agent_loop_output(group(silent)[2])


def test_verl_takes_a_batch_of_nothing_else(silent: dict[str, Any]) -> None:
    tensors, _ = verl.data_proto([make_trajectory(**silent, segments=[])], **PLACES, unscored="mask")
    assert len(tensors["responses"]) == 0


def test_slime_gets_a_placeholder_that_is_in_no_mean(silent: dict[str, Any]) -> None:
    samples = [
        sample for n, trajectory in enumerate(group(silent)) for sample in filled(slime.make_sample(n, 0), trajectory)
    ]
    assert [sample.remove_sample for sample in samples] == [False, False, True, False]
    raw, rewards = reward_post_process(slime.make_args(n_samples_per_prompt=4), samples)
    deviation = np.std([1, 0, 1], ddof=1) + 1e-6
    assert rewards == pytest.approx([1 / 3 / deviation, -2 / 3 / deviation, 0.0, 1 / 3 / deviation])
    assert np.mean(raw) == pytest.approx(2 / 3)
    same = [sample for sample in samples if sample.reward == 1.0 or sample.remove_sample]
    assert not keep_informative(None, same).keep, "its placeholder would make the group look informative"


def test_it_needs_no_tokenizer_to_be_taken(silent: dict[str, Any]) -> None:
    made = group(silent)
    for number, trajectory in enumerate(made):
        trajectory.provenance = Provenance(tokenizer_fingerprint="another" if number == 2 else "ours")
    collate_padded(made, 0, unscored="mask", tokenizer_fingerprint="ours")
