"""Episode: what the page holds of one trajectory: a row of the list, and what opens on demand.

Invariant: nothing is computed here that the record does not say. A field that the record lacks is None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import rollout_service.record.schema as schema
from rollout_service.audit.verify import Violation
from rollout_service.record.trajectory import TokenSegment, Trajectory, Turn
from rollout_service.report.facts import CallState, Facts, GoldState
from rollout_service.viewer.turn_times import turn_times

UNREADABLE = "unreadable"
"""In place of an outcome, where no trajectory could be read."""

_PLACE = re.compile(r"^(segment|turn|message) (\d+)(?: turn (\d+))?$")


def row(trajectory: Trajectory, violations: int, facts: Facts) -> dict[str, Any]:
    """What the list shows of a trajectory and filters by."""
    versions, task, fault = _version_range(trajectory), trajectory.task, trajectory.fault
    gold = facts.gold
    return {
        "id": trajectory.trajectory_id,
        "group": trajectory.group_id,
        "sample": trajectory.sample_index,
        "domain": task.domain,
        "split": task.split,
        "task": task.task_id,
        "outcome": str(trajectory.outcome),
        "ended": trajectory.termination_reason,
        "reward": trajectory.reward,
        "fault": None if fault is None else str(fault.kind),
        "said": "" if fault is None else f"{fault.error}: {fault.message}",
        "turns": len(trajectory.turns),
        "segments": len(trajectory.segments),
        "policyTokens": trajectory.policy_token_count,
        "tokens": sum(len(segment.token_ids) for segment in trajectory.segments),
        "cut": sum(turn.finish_reason == "length" for turn in trajectory.turns),
        "malformed": facts.count(CallState.MALFORMED),
        "refused": facts.count(CallState.REFUSED),
        "calls": len(facts.calls),
        "gold": None if gold is None else len(gold),
        "matched": None if gold is None else sum(action.state is GoldState.MATCHED for action in gold),
        "flaws": len(trajectory.user_flaws or ()),
        "violations": violations,
        "oldest": None if versions is None else versions[0],
        "newest": None if versions is None else versions[1],
        "seconds": round(trajectory.timing.episode_seconds, 3),
    }


def _version_range(trajectory: Trajectory) -> tuple[int, int] | None:
    """The oldest and the newest weight version that sampled a token; None: nothing was sampled, or the arrays that say
    so have different lengths, which `verify` reports."""
    if any(len(segment.loss_mask) != len(segment.weight_versions) for segment in trajectory.segments):
        return None
    return trajectory.weight_version_range


def unreadable_row(name: str, said: str) -> dict[str, Any]:
    """The row of a place where no trajectory can be read. What is not known is empty or None, and no number is 0.

    Args:
        name: the record's own id, or its place in the file.
        said: why it cannot be read.
    """
    counts = (
        *("turns", "segments", "policyTokens", "tokens", "cut", "malformed", "refused", "calls"),
        *("gold", "matched", "flaws", "oldest", "newest", "seconds", "reward", "fault", "sample"),
    )
    texts = {"id": name, "outcome": UNREADABLE, "said": said, "violations": 0}
    return dict.fromkeys(("group", "domain", "split", "task", "ended"), "") | dict.fromkeys(counts) | texts


def talk(trajectory: Trajectory, violations: Iterable[Violation], facts: Facts) -> dict[str, Any]:
    """All of a trajectory but its tokens."""
    elsewhere = ("segments", "messages", "trajectory_id", "group_id")
    kept = {name: schema.to_plain(value) for name, value in schema.shallow(trajectory).items() if name not in elsewhere}
    turns = [
        schema.to_plain(turn)
        | {"segment": number, "length": turn.end - turn.start, "versions": _versions(segment, turn)}
        for number, segment in enumerate(trajectory.segments)
        for turn in segment.turns
    ]
    return kept | {
        "seed": str(trajectory.seed),
        "messages": [_message(message) for message in trajectory.messages],
        "turns": turns,
        "times": turn_times(trajectory),
        "violations": [_violation(found, trajectory) for found in violations],
        "facts": _facts(facts),
    }


def _versions(segment: TokenSegment, turn: Turn) -> list[int] | None:
    """The oldest and the newest weight version that sampled the turn; None: the record has none there."""
    found = segment.weight_versions[max(turn.start, 0) : max(turn.end, 0)]
    return [int(found.min()), int(found.max())] if len(found) else None


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message with the arguments of its calls as JSON text, which keeps every number as it was written."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    shown = [call | {"arguments": as_text(call.get("arguments"))} if isinstance(call, dict) else call for call in calls]
    return message | {"tool_calls": shown}


def as_text(value: Any) -> str:
    """JSON of a value, for people."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def _facts(facts: Facts) -> dict[str, Any]:
    plain = asdict(facts)
    for action in plain["gold"] or ():
        action["arguments"] = as_text(dict(action["arguments"]))
    return plain


def _violation(found: Violation, trajectory: Trajectory) -> dict[str, Any]:
    return {"check": found.check, "where": found.where, "problem": found.problem} | place(found, trajectory)


def place(found: Violation, trajectory: Trajectory) -> dict[str, int]:
    """Where a violation is: its `segment`, `turn` (counted over all segments) and `message`, as far as it says."""
    parsed = _PLACE.match(found.where)
    if parsed is None:
        return {}
    kind, number, turn = parsed[1], int(parsed[2]), parsed[3]
    if turn is None:
        return {kind: number}
    earlier = sum(len(segment.turns) for segment in trajectory.segments[:number])
    # The check of prefixes counts turns within their segment, the one of messages counts them over all.
    return {"segment": number, "turn": int(turn) + (earlier if found.check == "prefix" else 0)}
