"""Audits stored trajectories, on a CPU, without Ray.

Invariant: the audit trusts nothing in the record that can be recomputed, and gives a result for every record, whatever
it contains. A part that cannot be read or checked is a violation, and the audit goes on. It loads only tokenizers that
the user names or that lie in local folders, and runs no code of theirs. There are five checks, after the invariants of
the schema:

1. `record`: the record can be read, and each field holds a value that it can have.
2. `tokens`: arrays have equal lengths; the mask is 1 exactly on the turns' spans, and each of these tokens has a
   log-prob and a weight version; versions never decrease within the trajectory; a turn's `prefix_version` is not newer
   than its tokens.
3. `prefix`: every turn's prompt lies before it in the same append-only segment, so it is a prefix of the final tokens.
   Spans are in order, do not overlap, and the segment ends with a sampled token.
4. `messages`: decoding and parsing a turn's tokens gives the message that τ² received; the tokenizer has every token,
   and a turn that the engine stopped ends with a token that ends turns.
5. `reward`: the official evaluator gives the same reward for the same messages, and replaying them gives the same
   database and the same facts of each turn; an episode in which the policy never spoke has no reward.

The audit cannot find changes that leave an honest record: in identifiers, seeds and attempts; in log-probs, weight
versions and counts of cached tokens within their bounds; in times, costs, limits and the user simulator's usage; in
names of models and versions of the service; in what the user said and the greeting; in context tokens; and in a fault's
text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import rollout_service.audit.record_check as record_check
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.tokenizer_files import recorded_source
from rollout_service.config.tasks import Retrieval
from rollout_service.errors import CodecError, ConfigError, TaskError
from rollout_service.record.storage import Unreadable
from rollout_service.record.trajectory import CONTEXT_VERSION, Outcome, TokenSegment, Trajectory
from rollout_service.termination import TerminationReason

CHECKS = ("record", "tokens", "prefix", "messages", "reward")


@dataclass(frozen=True, slots=True)
class Violation:
    """One problem, and where it is."""

    trajectory_id: str
    check: str
    where: str
    """Index of the segment, turn or message; for an unreadable record, its place in the file."""
    problem: str

    def __str__(self) -> str:
        where = "" if self.where == self.trajectory_id else f"{self.where}: "
        return f"{self.trajectory_id} [{self.check}] {where}{self.problem}"


def verify(
    trajectories: Iterable[Trajectory | Unreadable], *, tokenizer: str | None = None, checks: Iterable[str] = CHECKS
) -> Iterator[tuple[Trajectory | Unreadable, list[Violation]]]:
    """Audit each trajectory.

    Args:
        trajectories: `storage.salvage` gives those of a file, including unreadable ones.
        tokenizer: folder or hub name of the tokenizer, if the recorded name is not a folder on this machine.
        checks: which of `CHECKS` to make. `messages` needs the tokenizer, `reward` the same τ²-bench. Fields with wrong
            types are always found.

    Raises:
        CodecError: `tokenizer` cannot be loaded.
        ConfigError: a check is unknown.
    """
    asked = [checks] if isinstance(checks, str) else list(checks)
    if unknown := [check for check in asked if check not in CHECKS]:
        raise ConfigError(f"checks: there is no check {unknown[0]!r}.", f"Choose from {', '.join(CHECKS)}.")
    wanted = [check for check in CHECKS if check in asked]
    if tokenizer is not None and "messages" in wanted:
        _codec(tokenizer)
    for item in trajectories:
        if isinstance(item, Unreadable):
            problem = item.error.problem.removeprefix(item.where).lstrip()
            yield item, [Violation(item.trajectory_id, "record", item.where, problem)]
        else:
            yield item, list(_violations(item, wanted, tokenizer))


def _violations(trajectory: Trajectory, wanted: list[str], tokenizer: str | None) -> Iterator[Violation]:
    name = trajectory.trajectory_id
    try:
        trajectory.check_types()
    except ValueError as error:
        yield Violation(str(name), "record", "types", f"{error}")
        return  # the other checks rely on the types
    for check in wanted:
        found = []
        try:
            found.extend(_CHECKS[check](trajectory, tokenizer))
        except Exception as error:  # an unforeseen record must not hide the records after it
            found.append(Violation(name, check, "check", f"it cannot be made: {type(error).__name__}: {error}"))
        yield from found
        if check == "tokens" and found:
            return  # with wrong spans, every later message would be misleading


def check_record(trajectory: Trajectory, _: str | None = None) -> Iterator[Violation]:
    """Make check 1 on a record that could be read."""
    for where, problem in record_check.problems(trajectory):
        yield Violation(trajectory.trajectory_id, "record", where, problem)


def check_tokens(trajectory: Trajectory, _: str | None = None) -> Iterator[Violation]:
    """Make check 2."""
    newest = CONTEXT_VERSION
    for index, segment in enumerate(trajectory.segments):
        for problem in _segment_problems(segment):
            yield Violation(trajectory.trajectory_id, "tokens", f"segment {index}", problem)
        if _uneven(segment):
            continue
        rows = trajectory.provenance.model_vocabulary_size
        if rows is not None and (largest := int(segment.token_ids.max(initial=-1))) >= rows:
            problem = f"token id {largest} is none of the {rows} that the model has"
            yield Violation(trajectory.trajectory_id, "tokens", f"segment {index}", problem)
        versions = segment.weight_versions[segment.loss_mask == 1]
        if len(versions) and (versions[0] < newest or bool(np.any(np.diff(versions) < 0))):
            yield Violation(trajectory.trajectory_id, "tokens", f"segment {index}", "a weight version decreases")
        newest = max(newest, int(versions.max(initial=newest)))
    yield from _prefix_versions(trajectory)


def _prefix_versions(trajectory: Trajectory) -> Iterator[Violation]:
    """Check that no turn's keys and values are newer than its own weights, or older than those of earlier turns."""
    oldest = 0
    for number, (segment, turn) in enumerate((s, turn) for s in trajectory.segments for turn in s.turns):
        found, own = turn.prefix_version, segment.weight_versions[max(0, turn.start) : max(0, turn.end)]
        if found is None:
            continue
        if not oldest <= found <= int(own.min(initial=found)):
            problem = f"its prefix_version is {found}, not from {oldest} to {int(own.min(initial=found))}"
            yield Violation(trajectory.trajectory_id, "tokens", f"turn {number}", problem)
        oldest = max(oldest, found)


def _segment_problems(segment: TokenSegment) -> Iterator[str]:
    n = len(segment.token_ids)
    if uneven := _uneven(segment):
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


def _uneven(segment: TokenSegment) -> list[str]:
    arrays = {name: getattr(segment, name) for name in ("loss_mask", "logprobs", "weight_versions")}
    return [f"{name} has {len(array)}" for name, array in arrays.items() if len(array) != len(segment.token_ids)]


def check_prefix(trajectory: Trajectory, _: str | None = None) -> Iterator[Violation]:
    """Make check 3."""
    if trajectory.provenance.history == "append" and len(trajectory.segments) > 1:
        problem = f"there are {len(trajectory.segments)}, and history append makes one"
        yield Violation(trajectory.trajectory_id, "prefix", "segments", problem)
    for index, segment in enumerate(trajectory.segments):
        if segment.prompt_length < 1:
            problem = f"its prompt has {segment.prompt_length} tokens"
            yield Violation(trajectory.trajectory_id, "prefix", f"segment {index}", problem)
        if not segment.turns:
            yield Violation(trajectory.trajectory_id, "prefix", f"segment {index}", "it has no turn")
            continue
        position = segment.prompt_length
        for number, turn in enumerate(segment.turns):
            first = number == 0
            if turn.start < position or turn.end <= turn.start or (first and turn.start != segment.prompt_length):
                problem = f"tokens {turn.start} to {turn.end} do not follow the {position} tokens before them"
                yield Violation(trajectory.trajectory_id, "prefix", f"segment {index} turn {number}", problem)
            if not 0 <= turn.cached_tokens <= turn.start:
                problem = f"{turn.cached_tokens} of {turn.start} prompt tokens were cached"
                yield Violation(trajectory.trajectory_id, "prefix", f"segment {index} turn {number}", problem)
            position = turn.end
        if position != len(segment.token_ids):
            problem = f"{len(segment.token_ids) - position} tokens after the last turn were never sent to the engine"
            yield Violation(trajectory.trajectory_id, "prefix", f"segment {index}", problem)


@functools.lru_cache(maxsize=4)
def _codec(source: str | None, tool_parser: str = "auto", arguments: str = "{}", date: str = "") -> ChatCodec:
    given = json.loads(arguments)
    return ChatCodec.load(source, tool_parser=tool_parser, template_arguments=given, date=date or None)


def codec_of(trajectory: Trajectory, named: str | None) -> ChatCodec:
    """The codec of the trajectory's tokens, with the parser and the template arguments that made it.

    Raises:
        CodecError: its tokenizer is neither named by the user nor in a local folder, or differs from the recorded one.
    """
    made = trajectory.provenance
    source = recorded_source(made.tokenizer) if named is None else named
    how = made.tool_parser, json.dumps(made.template_arguments, sort_keys=True), made.template_date
    codec = _codec(source, *how)
    if codec.tokenizer_fingerprint != made.tokenizer_fingerprint:
        raise CodecError(
            f"the tokenizer {codec.name!r} ({codec.tokenizer_fingerprint}) is not the one that made it "
            f"({made.tokenizer!r}, {made.tokenizer_fingerprint}).",
            "Name the right one with --tokenizer.",
        )
    return codec


def check_messages(trajectory: Trajectory, tokenizer: str | None = None) -> Iterator[Violation]:
    """Make check 4."""
    from rollout_service.tau2 import domain, messages

    yield from _as_tau2_has_them(trajectory)
    if not trajectory.turns:
        return
    try:
        codec = codec_of(trajectory, tokenizer)
    except CodecError as error:
        yield Violation(trajectory.trajectory_id, "messages", "tokenizer", str(error))
        return
    made = trajectory.provenance
    for name in ("template_fingerprint", "tokenizer_size", "greeting"):
        here, recorded = getattr(codec, name), getattr(made, name)
        if recorded not in (None, here):
            problem = f"it is {here}, recorded {recorded!r}"
            yield Violation(trajectory.trajectory_id, "messages", name, problem)
    searched = Retrieval(**made.retrieval) if made.retrieval else None
    tools = domain.get(trajectory.task.domain, searched).tool_schemas(made.agent == "solo")
    ends = codec.turn_end_ids.union(made.sampling.get("stop_token_ids") or ())
    number = 0
    for index, segment in enumerate(trajectory.segments):
        if wrong := _without_token(segment, codec, made.model_vocabulary_size):
            yield Violation(trajectory.trajectory_id, "messages", f"segment {index}", wrong)
        for turn in segment.turns:
            ids = segment.token_ids[turn.start : turn.end].tolist()
            parsed = codec.parse(ids, tools)
            where = f"segment {index} turn {number}"
            if made.tokenizer_size is not None and (count := len(codec.unknown_ids(ids))) != turn.unknown_tokens:
                problem = f"the tokenizer has no token for {count} of its ids, recorded {turn.unknown_tokens}"
                yield Violation(trajectory.trajectory_id, "messages", where, problem)
            if turn.finish_reason == "stop" and (last := int(segment.token_ids[turn.end - 1])) not in ends:
                problem = f"the engine stopped it, but its last token {last} ends no turn: the stop token was taken off"
                yield Violation(trajectory.trajectory_id, "messages", where, problem)
            if [call.status for call in parsed.calls] != turn.tool_calls:
                problem = (
                    f"its tool calls parse as {[call.status for call in parsed.calls]}, recorded {turn.tool_calls}"
                )
                yield Violation(trajectory.trajectory_id, "messages", where, problem)
            if turn.message_index is not None:
                sent = messages.to_record(messages.from_turn(parsed, number))
                known = 0 <= turn.message_index < len(trajectory.messages)
                got = trajectory.messages[turn.message_index] if known else {}
                if not _same_message(sent, got, trajectory.provenance.agent):
                    problem = f"its tokens say {_essence(sent)}, message {turn.message_index} says {_essence(got)}"
                    yield Violation(trajectory.trajectory_id, "messages", where, problem)
            elif not parsed.is_empty and trajectory.outcome is not Outcome.ABORTED:
                yield Violation(trajectory.trajectory_id, "messages", where, "no message was made of its tokens")
            number += 1


def _without_token(segment: TokenSegment, codec: ChatCodec, rows: int | None) -> str | None:
    """The problem with ids for which the tokenizer has no token; None: there is none. Only a model that is known to
    have more `rows` than the tokenizer has tokens may sample such ids."""
    unknown = np.isin(segment.token_ids, codec.unknown_ids(np.unique(segment.token_ids).tolist()))
    padding = (segment.token_ids < (rows or 0)) & (segment.loss_mask == 1)
    wrong = np.flatnonzero(unknown & ~padding)
    if not len(wrong):
        return None
    at = int(wrong[0])
    kind = "sampled" if segment.loss_mask[at] else "context"
    return (
        f"the tokenizer has no token {segment.token_ids[at]}, which stands at {at} ({kind}); {len(wrong)} such tokens"
    )


def _as_tau2_has_them(trajectory: Trajectory) -> Iterator[Violation]:
    from rollout_service.tau2 import messages, replay

    if not replay.is_installed(trajectory):
        return  # messages of another release may have other fields
    for number, record in enumerate(trajectory.messages):
        try:
            same = messages.to_record(messages.from_record(record)) == record
            problem = "τ² would store it in another way"
        except (KeyError, TypeError, ValueError) as error:
            same, problem = False, f"it is no message of τ²: {error}"
        if not same:
            yield Violation(trajectory.trajectory_id, "messages", f"message {number}", problem)


def _essence(message: dict[str, Any]) -> dict[str, Any]:
    return {key: message[key] for key in ("role", "content", "tool_calls") if message.get(key)}


def _same_message(sent: dict[str, Any], got: dict[str, Any], agent: str) -> bool:
    from rollout_service.tau2.agent import says_done

    if agent == "solo" and says_done(sent):
        return got.get("content") == "###STOP###" and not got.get("tool_calls")  # what τ²'s solo agent makes of it
    return _essence(sent) == _essence(got)


def check_reward(trajectory: Trajectory, _: str | None = None) -> Iterator[Violation]:
    """Make check 5. NL assertions are not judged again; their recorded verdicts are accepted."""
    from rollout_service.tau2 import replay

    name = trajectory.trajectory_id
    if replay.is_installed(trajectory):
        for where, problem in _not_of_tau2(trajectory):
            yield Violation(name, "reward", where, problem)
    if trajectory.reward is not None and not trajectory.turns:
        yield Violation(name, "reward", "reward", f"it is {trajectory.reward}, and the policy never spoke")
    aborted = trajectory.outcome is Outcome.ABORTED or trajectory.fault is not None
    if aborted and trajectory.reward is not None:
        yield Violation(name, "reward", "reward", "an aborted episode has a reward")
    try:
        problems = replay.differing_facts(trajectory) if aborted else replay.differences(trajectory)
    except Exception as error:
        problems = [f"replaying the messages failed: {error}"]
    for problem in problems:
        yield Violation(name, "reward", "replay", problem)


def _not_of_tau2(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    from rollout_service.tau2 import compat, domain, tasks

    task, reason, made = trajectory.task, trajectory.termination_reason, trajectory.provenance
    try:
        if (found := tasks.references(task.domain, task.split, [task.task_id])[0]) != task:
            yield "task", f"its index is {found.index}, recorded {task.index}"
        if made.task_hash and made.task_hash != (installed := tasks.hash_of(found)):
            yield (
                "task",
                f"the installed one has the hash {installed}, recorded {made.task_hash}: its contents changed",
            )
        played = domain.get(task.domain, Retrieval(**made.retrieval) if made.retrieval else None)
        if made.domain_hash and made.domain_hash != (installed := played.content_hash(made.agent == "solo")):
            yield "domain", f"its policy and tools have the hash {installed} here, recorded {made.domain_hash}"
    except TaskError as error:
        yield "task", error.problem
    if reason not in {*TerminationReason, *(known.value for known in compat.TerminationReason)}:
        yield "termination_reason", f"it is {reason!r}, which is neither τ²'s nor ours"


_CHECKS: dict[str, Any] = {
    "record": check_record,
    "tokens": check_tokens,
    "prefix": check_prefix,
    "messages": check_messages,
    "reward": check_reward,
}
