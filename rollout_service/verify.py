"""Audits stored trajectories, on a CPU, without Ray.

Invariant: trusts nothing in the record that can be recomputed. Four checks, after the invariants of the schema:

1. `tokens`: arrays of one length; mask 1 exactly on the turns' spans, with a log-prob and a weight version for each;
   versions never decrease within the trajectory.
2. `prefix`: every turn's prompt lies before it in the same append-only segment, so it is a prefix of the final tokens:
   spans are in order, do not overlap, and the segment ends with a sampled token.
3. `messages`: decoding a turn's tokens and parsing them gives the message that τ² received.
4. `reward`: the official evaluator gives the same reward for the same messages, and replaying them the same database.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout_service.errors import CodecError
from rollout_service.trajectory import CONTEXT_VERSION, Outcome, TokenSegment, Trajectory

CHECKS = ("tokens", "prefix", "messages", "reward")


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong, and where."""

    trajectory_id: str
    check: str
    where: str
    """Segment, turn or message, by index."""
    problem: str

    def __str__(self) -> str:
        return f"{self.trajectory_id} [{self.check}] {self.where}: {self.problem}"


def verify(
    trajectories: Iterable[Trajectory], *, tokenizer: str | None = None, checks: Iterable[str] = CHECKS
) -> Iterator[tuple[Trajectory, list[Violation]]]:
    """Audit each trajectory.

    Args:
        tokenizer: folder of the tokenizer, where the recorded name does not lead to it.
        checks: which of `CHECKS` to make; `messages` needs the tokenizer, `reward` the same τ²-bench.

    Raises:
        CodecError: the tokenizer cannot be loaded, or is not the one that made the tokens.
    """
    wanted = [check for check in CHECKS if check in set(checks)]
    for trajectory in trajectories:
        found: list[Violation] = []
        for check in wanted:
            found.extend(_CHECKS[check](trajectory, tokenizer))
            if check == "tokens" and found:
                break  # spans that are wrong make every later message misleading
        yield trajectory, found


def check_tokens(trajectory: Trajectory, _: str | None = None) -> Iterator[Violation]:
    """Check 1."""
    newest = CONTEXT_VERSION
    for index, segment in enumerate(trajectory.segments):
        for problem in _segment_problems(segment):
            yield Violation(trajectory.trajectory_id, "tokens", f"segment {index}", problem)
        versions = segment.weight_versions[segment.loss_mask == 1]
        if len(versions) and (versions[0] < newest or bool(np.any(np.diff(versions) < 0))):
            yield Violation(trajectory.trajectory_id, "tokens", f"segment {index}", "a weight version decreases")
        newest = max(newest, int(versions.max(initial=newest)))


def _segment_problems(segment: TokenSegment) -> Iterator[str]:
    n = len(segment.token_ids)
    lengths: dict[str, Any] = {
        "loss_mask": segment.loss_mask,
        "logprobs": segment.logprobs,
        "weight_versions": segment.weight_versions,
    }
    uneven = [f"{name} has {len(array)}" for name, array in lengths.items() if len(array) != n]
    if uneven:
        yield f"{n} tokens, but {', '.join(uneven)}"
        return
    expected = np.zeros(n, dtype=np.uint8)
    for turn in segment.turns:
        expected[turn.start : turn.end] = 1
    if not np.array_equal(expected, segment.loss_mask):
        at = int(np.flatnonzero(expected != segment.loss_mask)[0])
        was = "was" if expected[at] else "was not"
        yield f"the loss mask is {segment.loss_mask[at]} at token {at}, which {was} sampled"
    context = segment.loss_mask == 0
    if np.any(segment.logprobs[context] != 0) or np.any(segment.weight_versions[context] != CONTEXT_VERSION):
        yield "a context token has a log-prob or a weight version"
    sampled = segment.logprobs[~context]
    if not np.all(np.isfinite(sampled)) or np.any(sampled > 1e-4):
        yield "a sampled token's log-prob is not a finite number of at most 0"
    if np.any(segment.weight_versions[~context] < 0):
        yield "a sampled token has no weight version"
    if n and int(segment.token_ids.min()) < 0:
        yield "a token id is negative"


def check_prefix(trajectory: Trajectory, _: str | None = None) -> Iterator[Violation]:
    """Check 2."""
    for index, segment in enumerate(trajectory.segments):
        if not segment.turns:
            yield Violation(trajectory.trajectory_id, "prefix", f"segment {index}", "it has no turn")
            continue
        position = segment.prompt_length
        for number, turn in enumerate(segment.turns):
            first = number == 0
            if turn.start < position or turn.end <= turn.start or (first and turn.start != segment.prompt_length):
                problem = f"tokens {turn.start} to {turn.end} do not follow the {position} tokens before them"
                yield Violation(trajectory.trajectory_id, "prefix", f"segment {index} turn {number}", problem)
            if turn.cached_tokens > turn.start:
                problem = f"{turn.cached_tokens} of {turn.start} prompt tokens were cached"
                yield Violation(trajectory.trajectory_id, "prefix", f"segment {index} turn {number}", problem)
            position = turn.end
        if position != len(segment.token_ids):
            problem = f"{len(segment.token_ids) - position} tokens after the last turn were never sent to the engine"
            yield Violation(trajectory.trajectory_id, "prefix", f"segment {index}", problem)


@functools.lru_cache(maxsize=4)
def _codec(source: str | None) -> Any:
    from rollout_service.chat import ChatCodec

    return ChatCodec.load(source)


def check_messages(trajectory: Trajectory, tokenizer: str | None = None) -> Iterator[Violation]:
    """Check 3.

    Raises:
        CodecError: no tokenizer, or another one than the recorded.
    """
    if not trajectory.turns:
        return
    from rollout_service.tau2 import messages

    made = trajectory.provenance
    codec = _codec(tokenizer or (None if made.tokenizer == "embedded" else made.tokenizer))
    if codec.tokenizer_fingerprint != made.tokenizer_fingerprint:
        raise CodecError(
            f"The tokenizer {codec.name!r} ({codec.tokenizer_fingerprint}) is not the one that made "
            f"{trajectory.trajectory_id} ({made.tokenizer}, {made.tokenizer_fingerprint}).",
            "Name the right one with --tokenizer.",
        )
    number = 0
    for index, segment in enumerate(trajectory.segments):
        for turn in segment.turns:
            parsed = codec.parse(segment.token_ids[turn.start : turn.end].tolist())
            where = f"segment {index} turn {number}"
            if [call.status for call in parsed.calls] != turn.tool_calls:
                problem = (
                    f"its tool calls parse as {[call.status for call in parsed.calls]}, recorded {turn.tool_calls}"
                )
                yield Violation(trajectory.trajectory_id, "messages", where, problem)
            if turn.message_index is not None:
                sent = messages.to_record(messages.from_turn(parsed, number))
                got = trajectory.messages[turn.message_index]
                if not _same_message(sent, got, trajectory.provenance.agent):
                    problem = f"its tokens say {_essence(sent)}, message {turn.message_index} says {_essence(got)}"
                    yield Violation(trajectory.trajectory_id, "messages", where, problem)
            elif not parsed.is_empty and trajectory.outcome is not Outcome.ABORTED:
                yield Violation(trajectory.trajectory_id, "messages", where, "no message was made of its tokens")
            number += 1


def _essence(message: dict[str, Any]) -> dict[str, Any]:
    return {key: message[key] for key in ("role", "content", "tool_calls") if message.get(key)}


def _same_message(sent: dict[str, Any], got: dict[str, Any], agent: str) -> bool:
    from rollout_service.tau2.agent import says_done

    if agent == "solo" and says_done(sent):
        return got.get("content") == "###STOP###" and not got.get("tool_calls")  # what τ²'s solo agent makes of it
    return _essence(sent) == _essence(got)


def check_reward(trajectory: Trajectory, _: str | None = None) -> Iterator[Violation]:
    """Check 4. NL assertions are not judged again: their recorded verdicts are taken as given."""
    if trajectory.outcome is Outcome.ABORTED or trajectory.fault is not None:
        if trajectory.reward is not None:
            yield Violation(trajectory.trajectory_id, "reward", "reward", "an aborted episode has a reward")
        return
    from rollout_service.tau2 import replay

    try:
        problems = replay.differences(trajectory)
    except Exception as error:
        problems = [f"replaying the messages failed: {error}"]
    for problem in problems:
        yield Violation(trajectory.trajectory_id, "reward", "replay", problem)


_CHECKS: dict[str, Any] = {
    "tokens": check_tokens,
    "prefix": check_prefix,
    "messages": check_messages,
    "reward": check_reward,
}
