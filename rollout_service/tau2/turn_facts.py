"""Finds the facts of a conversation's policy turns, see `rollout_service.record.turn_facts`.

Invariant: actions and texts are compared by τ²'s own evaluators, whatever the episode was scored by and however it
ended. So where τ² checked them, an action or a text of a turn is one that it found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rollout_service.record.trajectory import Turn
from rollout_service.record.turn_facts import TurnFacts, answered
from rollout_service.tau2 import compat


def note(
    turns: Sequence[Turn],
    replies: int,
    messages: Sequence[compat.Message],
    record: Sequence[Mapping[str, Any]],
    task: compat.Task,
    wrote: Collection[str],
) -> None:
    """Note for each turn which message it became, and what it did. An empty turn ends the episode and becomes none.

    Args:
        replies: number of turns that became messages: the last assistant messages, in order.
        messages, record, task, wrote: as for `found`.
    """
    spoken = [index for index, message in enumerate(record) if message["role"] == "assistant"]
    for turn, index in zip(turns, spoken[len(spoken) - replies :], strict=False):
        turn.message_index = index
    for turn, facts in zip(turns, found(turns, messages, record, task, wrote), strict=True):
        turn.facts = facts


def found(
    turns: Sequence[Turn],
    messages: Sequence[compat.Message],
    record: Sequence[Mapping[str, Any]],
    task: compat.Task,
    wrote: Collection[str] | None,
) -> list[TurnFacts]:
    """The facts of each turn.

    Args:
        turns: all of the episode, in order, with the positions of their messages.
        messages: the conversation.
        record: the same messages as the trajectory has them.
        wrote: ids of the calls that changed a database; None: not known.
    """
    criteria = task.evaluation_criteria
    actions = dict(enumerate((criteria.actions or []) if criteria else []))
    texts = dict(enumerate((criteria.communicate_info or []) if criteria else []))
    facts = []
    for turn in turns:
        at = turn.message_index
        valid, refused = answered(turn.tool_calls, at, record)
        message = None if at is None else messages[at]
        calls = [] if message is None else message.tool_calls or []
        matched = [number for number, action in actions.items() if any(map(action.compare_with_tool_call, calls))]
        said = [] if message is None or not texts else _said(message, texts)
        for number in matched:
            del actions[number]
        for number in said:
            del texts[number]
        changed = None if wrote is None else any(call.id in wrote for call in calls)
        facts.append(TurnFacts(valid, refused, changed, matched, said))
    return facts


def _said(message: compat.Message, texts: Mapping[int, str]) -> list[int]:
    """Positions of the texts that the message says."""
    checks = compat.CommunicateEvaluator.evaluate_communicate_info([message], list(texts.values()))
    return [number for number, check in zip(texts, checks, strict=True) if check.met]
