"""TurnFacts: what a policy turn did, for trainers that give credit to single turns.

Invariant: facts stand beside the reward and never change it. Each of them follows from the task and the messages, so a
replay finds the same (`rollout_service.tau2.turn_facts`). A fact that is not known is None, as in files of releases
that did not record it, and is never taken for "no".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OK = "ok"
"""The parse status of a well-formed call."""


@dataclass(slots=True)
class TurnFacts:
    """What one turn did."""

    valid_calls: int | None = None
    """Tool calls that are well formed and that the environment carried out: it knows the tool and took the arguments.
    The solo agent's `done` is one, too."""
    refused_calls: int | None = None
    """Well-formed calls that the environment answered with an error: no such tool, wrong arguments, or a rule of the
    tool. Malformed calls are not among them; `Turn.tool_calls` has those."""
    wrote: bool | None = None
    """Whether a call changed the contents of a database, of the agent's or the user's: τ²'s hash is another one after
    it. A tool that may write and leaves all as it was wrote nothing; one that fails after it wrote did write. Only
    tools that τ² declares as writing are looked at."""
    gold_actions: list[int] | None = None
    """Positions in the task's `evaluation_criteria.actions` of the actions that this turn is the first of the policy's
    to match, by τ²'s own comparison of name and arguments. It also matches a call that was refused, and never asks
    whether the action's requestor is the agent or the user."""
    communicated: list[int] | None = None
    """Positions in the task's `evaluation_criteria.communicate_info` of the texts that this turn is the first of the
    policy's to say, by τ²'s own search for them."""


def answered(
    statuses: Sequence[str], message_index: int | None, messages: Sequence[Mapping[str, Any]]
) -> tuple[int, int]:
    """How many calls of a turn are valid, and how many were refused.

    Args:
        statuses: parse status of each call.
        message_index: position of the message that the turn became; None: it became none, so nothing was answered.
        messages: the trajectory's.
    """
    if message_index is None or not statuses or not 0 <= message_index < len(messages):
        return 0, 0
    calls = messages[message_index].get("tool_calls") or ()
    if not calls:  # τ²'s solo agent made its stop word of the call
        return 1, 0
    errors = {}
    for answer in messages[message_index + 1 : message_index + 1 + len(calls)]:
        if answer.get("role") != "tool":
            break
        errors[answer.get("id")] = bool(answer.get("error"))
    well_formed = [call for call, status in zip(calls, statuses, strict=False) if status == OK]
    found = [errors[call.get("id")] for call in well_formed if call.get("id") in errors]
    return found.count(False), found.count(True)


def problems(facts: TurnFacts, statuses: Sequence[str], message_index: int | None, messages: Any) -> list[str]:
    """What is impossible about a turn's facts, read from the record alone. Unknown facts are possible."""
    valid, refused = answered(statuses, message_index, messages)
    wrong = []
    for name, found in (("valid_calls", valid), ("refused_calls", refused)):
        recorded = getattr(facts, name)
        if recorded not in (None, found):
            wrong.append(f"{name} is {recorded}, and its messages show {found}")
    if facts.wrote and OK not in statuses:
        wrong.append("wrote is true, and no call is well formed")
    for name in ("gold_actions", "communicated"):
        positions = getattr(facts, name) or []
        if any(at < 0 for at in positions) or positions != sorted(set(positions)):
            wrong.append(f"{name} is {positions}, no ascending positions")
    return wrong
