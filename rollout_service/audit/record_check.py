"""Checks the values of a record that its types do not check.

Invariant: only the record is read, without a tokenizer and without τ². Every record that the service makes passes. One
that does not pass was changed, or made by a bug of the service.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import get_args

from pydantic import ValidationError

from rollout_service.config import Evaluation, PolicyConfig, RolloutConfig
from rollout_service.config.limits import Limits
from rollout_service.config.sampling import Sampling
from rollout_service.record import turn_facts
from rollout_service.record.trajectory import Timing, Trajectory, UserUsage, outcome_of
from rollout_service.termination import UNSCORED, TerminationReason

_WORDS = {
    "history": get_args(PolicyConfig.model_fields["history"].annotation),
    "agent": get_args(RolloutConfig.model_fields["agent"].annotation),
    "evaluation": get_args(Evaluation.model_fields["type"].annotation),
    "evaluator": ("", "official", "fast"),
}
_ROLES = ("system", "assistant", "user", "tool")
_ENDERS: dict[str, str] = {TerminationReason.USER_STOP: "user", TerminationReason.AGENT_STOP: "assistant"}


_CLOCKS_DIFFER = 0.01
"""Share and seconds by which the clocks of two machines may measure one duration differently."""


def problems(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Each impossible value: where it is, and what is wrong with it."""
    yield from _identity(trajectory)
    yield from _ending(trajectory)
    yield from _provenance(trajectory)
    yield from _messages(trajectory)
    yield from _turns(trajectory)
    yield from _credits(trajectory)
    yield from _flaws(trajectory)
    yield from _review(trajectory)
    counted: dict[str, Timing | UserUsage] = {"timing": trajectory.timing, "user_usage": trajectory.user_usage}
    if trajectory.user_review is not None:
        counted["user_review.usage"] = trajectory.user_review.usage
    for part, numbers in counted.items():
        for name, value in asdict(numbers).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                yield f"{part}.{name}", f"it is {value}"


def _identity(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    for name in ("trajectory_id", "collection_id", "group_id"):
        if not getattr(trajectory, name):
            yield name, "it is empty"
    for name, value, least in (
        ("sample_index", trajectory.sample_index, 0),
        ("attempt", trajectory.attempt, 1),
        ("task.index", trajectory.task.index, 0),
    ):
        if value < least:
            yield name, f"it is {value}, below {least}"


def _ending(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    reason, outcome = trajectory.termination_reason, trajectory.outcome
    if outcome is not outcome_of(reason):
        yield "outcome", f"it is {outcome}, but an episode that ended by {reason!r} is {outcome_of(reason)}"
    if (trajectory.fault is not None) != (reason == TerminationReason.FAULT):
        yield "fault", f"it is {trajectory.fault}, and the episode ended by {reason!r}"
    if trajectory.started and not _is_time(trajectory.started):
        yield "started", f"it is {trajectory.started!r}, no time with its zone"
    reward, parts = trajectory.reward, trajectory.reward_info
    if reward is not None and reason in UNSCORED:
        yield "reward", f"it is {reward}, and an episode that ended by {reason!r} is not scored"
    if reward is not None and not math.isfinite(reward):
        yield "reward", f"it is {reward}"
    if (None if parts is None else parts.get("reward")) != reward:
        yield "reward", f"it is {reward}, and reward_info says {None if parts is None else parts.get('reward')}"


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _provenance(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    made = trajectory.provenance
    for name, known in _WORDS.items():
        if (value := getattr(made, name)) not in known:
            yield f"provenance.{name}", f"it is {value!r}, none of {', '.join(filter(None, known))}"
    if made.evaluator and trajectory.reward is None:
        yield "provenance.evaluator", f"it is {made.evaluator!r}, and there is no reward"
    for name, limit in made.limits.items():
        if name not in Limits.model_fields or not (isinstance(limit, int) and limit >= 1):
            yield f"provenance.limits.{name}", f"it is {limit!r}"
    if made.user_arguments and made.user in ("scripted", "dummy"):
        yield "provenance.user_arguments", f"they are set, and the user is {made.user}"
    try:
        Sampling(**made.sampling)
    except (TypeError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        yield ".".join(["provenance.sampling", *map(str, first["loc"])]), str(first["msg"])


def _messages(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    for number, message in enumerate(trajectory.messages):
        role = message.get("role")
        if role not in _ROLES:
            yield f"message {number}", f"its role is {role!r}"
        elif role in ("assistant", "user") and not (message.get("content") or message.get("tool_calls")):
            yield f"message {number}", "it has neither content nor tool calls"
        if (place := message.get("turn_idx", number)) != number:
            yield f"message {number}", f"its turn_idx is {place!r}"
    last = trajectory.messages[-1].get("role") if trajectory.messages else None
    if (ender := _ENDERS.get(trajectory.termination_reason, last)) != last:
        yield "messages", f"the last one is of role {last!r}, but the {ender} ended the episode"


def _flaws(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Check that each flaw of the user is shown by messages that there are."""
    for name, shown in (trajectory.user_flaws or {}).items():
        places = range(len(trajectory.messages))
        if not (isinstance(shown, list) and shown and all(isinstance(at, int) and at in places for at in shown)):
            yield f"user_flaws.{name}", f"it is {shown!r}, not positions of messages"


def _review(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Check that there is either a review, whose errors are a list of objects, or the reason why there is none."""
    made = trajectory.user_review
    if made is None:
        return
    if (made.review is None) != bool(made.problem):
        yield "user_review", f"its review is {made.review!r}, its problem {made.problem!r}"
    errors = (made.review or {"errors": []}).get("errors")
    if not (isinstance(errors, list) and all(isinstance(error, dict) for error in errors)):
        yield "user_review.review.errors", f"they are {errors!r}, not a list of errors"


def _turns(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    for number, turn in enumerate(trajectory.turns):
        where = f"turn {number}"
        if turn.finish_reason not in ("stop", "length"):
            yield where, f"its finish_reason is {turn.finish_reason!r}"
        if not (math.isfinite(turn.policy_seconds) and turn.policy_seconds >= 0):
            yield where, f"its policy_seconds are {turn.policy_seconds}"
        longest = turn.policy_seconds * (1 + _CLOCKS_DIFFER) + _CLOCKS_DIFFER
        if turn.queue_seconds is not None and not 0 <= turn.queue_seconds <= longest:
            yield where, f"its queue_seconds are {turn.queue_seconds} of {turn.policy_seconds} policy_seconds"
        for problem in turn_facts.problems(turn.facts, turn.tool_calls, turn.message_index, trajectory.messages):
            yield where, f"its {problem}"
    yield from _places(trajectory)


def _credits(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Check that no gold action and no text is credited to two turns, and none that the evaluator did not find."""
    for name, checks, met in (
        ("gold_actions", "action_checks", "action_match"),
        ("communicated", "communicate_checks", "met"),
    ):
        credited = [at for turn in trajectory.turns for at in getattr(turn.facts, name) or ()]
        if twice := [at for at, count in Counter(credited).items() if count > 1]:
            yield "turns", f"their {name} have {twice[0]} more than once"
        found = (trajectory.reward_info or {}).get(checks)
        if isinstance(found, list) and (wrong := [at for at in credited if at >= len(found) or not found[at].get(met)]):
            yield "turns", f"their {name} have {wrong[0]}, which the evaluator did not find"


def _places(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Check that the turns became the last assistant messages, in order. Only the last turn may have become none."""
    found = [turn.message_index for turn in trajectory.turns]
    became = found[:-1] if found[-1:] == [None] else found
    spoken = [number for number, message in enumerate(trajectory.messages) if message.get("role") == "assistant"]
    if became != spoken[max(0, len(spoken) - len(became)) :]:
        yield "turns", f"their message_index are {found}, and the assistant's messages are {spoken}"
