"""Facts: what one trajectory shows of the policy's tool calls, and of each check of the official evaluator.

Invariant: everything is read from the record, and what the record does not say is None. It is never taken for a failed
or a passed check. τ² checks nothing in an episode that a limit or a fault ended, so such an episode has no gold
actions, no communicated facts and no database here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rollout_service.chat.parsed_turn import MALFORMED_ARGUMENT, OK
from rollout_service.record.trajectory import Trajectory


class CallState(StrEnum):
    """What became of a tool call of the policy."""

    VALID = "valid"
    """It is well formed, and the environment carried it out."""
    MALFORMED = "malformed"
    """It could not be parsed, so the environment answered with an error."""
    REFUSED = "refused"
    """It is well formed, and the environment answered with an error: no such tool, wrong arguments, or a rule of the
    tool."""
    UNANSWERED = "unanswered"
    """It is well formed, and the episode ended before the environment answered."""


class GoldState(StrEnum):
    """What became of an action that the task wants."""

    MATCHED = "matched"
    """τ² found a call of the same name with the same arguments, or those of them that the task compares."""
    WRONG_ARGUMENTS = "wrong_arguments"
    """There are calls of that name, but all have other arguments."""
    MISSING = "missing"
    """There is no call of that name."""


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call of the policy."""

    name: str
    """Empty: the turn became no message, so nothing says what it called."""
    state: CallState
    problem: str
    """Why it is malformed, as its turn says; empty: it is not."""
    message: int | None
    """Position in `Trajectory.messages` of the message with the call. None: the turn became no message."""
    answer: int | None
    """Position of the environment's answer. None: there is none."""


@dataclass(frozen=True, slots=True)
class GoldAction:
    """One action that the task wants, as τ² checked it."""

    name: str
    requestor: str
    """`assistant`: the policy is to call; `user`: the user simulator is."""
    arguments: Mapping[str, Any]
    state: GoldState


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the evaluator looked for."""

    text: str
    """What the policy was to say, the assertion on the environment, or the assertion that a judge decided."""
    met: bool
    why: str = ""
    """The evaluator's own words, where it has any."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one trajectory shows."""

    calls: tuple[Call, ...]
    """The policy's calls in order, those of a turn that became no message among them."""
    gold: tuple[GoldAction, ...] | None
    """Actions that the task wants, in its order. None: nobody checked them. Empty: it wants none."""
    communicated: tuple[Check, ...] | None
    """What the policy was to tell the user. None: nobody checked. Empty: nothing was to be told."""
    database: bool | None
    """Whether the databases are as the gold actions leave them. None: nobody checked. Not every task's reward counts
    it: telecom's go by assertions."""
    assertions: tuple[Check, ...] | None
    """τ²'s assertions on the environment's end state. None: nobody checked, or there are none."""
    judged: tuple[Check, ...] | None
    """Assertions in plain language that a judge decided. None: no judge was asked, or there are none."""

    def count(self, state: CallState) -> int:
        """Calls in this state."""
        return sum(call.state is state for call in self.calls)

    def gold_of(self, requestor: str) -> list[GoldAction]:
        """The gold actions of `assistant` or `user`; none, where nobody checked."""
        return [action for action in self.gold or () if action.requestor == requestor]

    @classmethod
    def of(cls, trajectory: Trajectory) -> Facts:
        """The facts of a trajectory of any release."""
        info = trajectory.reward_info or {}
        database = info.get("db_check")
        return cls(
            tuple(_calls(trajectory)),
            _gold(info, trajectory.messages),
            _checks(info, "communicate_checks", "info", none_if_absent=not _said_nothing_to_check(info, "communicate")),
            None if database is None else bool(database["db_match"]),
            _checks(info, "env_assertions", "env_assertion"),
            _checks(info, "nl_assertions", "nl_assertion"),
        )


def _calls(trajectory: Trajectory) -> Iterator[Call]:
    """The calls in the messages, then those of turns that became no message."""
    statuses = {turn.message_index: turn.tool_calls for turn in trajectory.turns if turn.message_index is not None}
    for at, message in enumerate(trajectory.messages):
        if message.get("role") == "assistant" and message.get("tool_calls"):
            answers = _answers(trajectory.messages, at)
            said = statuses.get(at, [])
            for number, call in enumerate(message["tool_calls"]):
                answer = answers.get(call.get("id"))
                status = said[number] if number < len(said) else OK
                yield _call(call, status, trajectory.messages, at, answer)
    for turn in trajectory.turns:
        if turn.message_index is None:
            for status in turn.tool_calls:
                state = CallState.UNANSWERED if status == OK else CallState.MALFORMED
                yield Call("", state, "" if status == OK else status, None, None)


def _call(
    call: Mapping[str, Any], status: str, messages: Sequence[Mapping[str, Any]], at: int, answer: int | None
) -> Call:
    malformed = status != OK or MALFORMED_ARGUMENT in (call.get("arguments") or {})
    if malformed:
        state = CallState.MALFORMED
    elif answer is None:
        state = CallState.UNANSWERED
    else:
        state = CallState.REFUSED if messages[answer].get("error") else CallState.VALID
    problem = "" if not malformed else MALFORMED_ARGUMENT if status == OK else status
    return Call(call["name"], state, problem, at, answer)


def _answers(messages: Sequence[Mapping[str, Any]], at: int) -> dict[str, int]:
    """Position of each answer to the calls of the message at `at`, by the call's id. Answers follow their calls."""
    found = {}
    for position in range(at + 1, len(messages)):
        message = messages[position]
        if message.get("role") != "tool":
            break
        found[message.get("id") or message.get("tool_call_id") or ""] = position
    return found


def _gold(info: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> tuple[GoldAction, ...] | None:
    checks = info.get("action_checks")
    if checks is None:
        return () if _said_nothing_to_check(info, "action") else None
    called = {
        call["name"]
        for message in messages
        if message.get("role") in ("assistant", "user")
        for call in message.get("tool_calls") or ()
    }
    found = []
    for check in checks:
        action = check["action"]
        state = GoldState.WRONG_ARGUMENTS if action["name"] in called else GoldState.MISSING
        if check["action_match"]:
            state = GoldState.MATCHED
        requestor = action.get("requestor") or "assistant"
        found.append(GoldAction(action["name"], requestor, action.get("arguments") or {}, state))
    return tuple(found)


def _said_nothing_to_check(info: Mapping[str, Any], part: str) -> bool:
    """Whether the evaluator looked, and the task had nothing of this kind to check. τ² leaves the checks out then, and
    says so in a note."""
    notes = (info.get("info") or {}).get(part)
    return isinstance(notes, Mapping) and str(notes.get("note", "")).startswith("No ")


def _checks(info: Mapping[str, Any], name: str, text: str, *, none_if_absent: bool = True) -> tuple[Check, ...] | None:
    checks = info.get(name)
    if checks is None:
        return None if none_if_absent else ()
    return tuple(Check(_text(check[text]), bool(check["met"]), check.get("justification") or "") for check in checks)


def _text(wanted: Any) -> str:
    """An assertion on the environment is a call with a name; the others are text."""
    if not isinstance(wanted, Mapping):
        return str(wanted)
    arguments = ", ".join(f"{name}={value!r}" for name, value in (wanted.get("arguments") or {}).items())
    expected = "" if wanted.get("assert_value", True) else "not "
    return f"{expected}{wanted.get('func_name') or wanted.get('name')}({arguments})"
