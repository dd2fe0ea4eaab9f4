"""Turn times: what each turn of an episode waited for, as far as its record says.

Invariant: the parts of an episode add up to its recorded seconds. A part that cannot be placed in a turn is not
guessed: it is given for the whole episode.

The policy's seconds are recorded with each turn, and how many of them it waited in queues, where that is known. Those
of user and tools are the differences between the timestamps of messages. Where these do not fit the recorded sums, as
with messages that stood in the task, they are left out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rollout_service.record.trajectory import Trajectory

_TOLERANCE = 0.05
"""Seconds by which the differences of timestamps may exceed what is recorded."""


def turn_times(trajectory: Trajectory) -> dict[str, Any]:
    """Seconds by turn and the rest.

    Returns:
        `turns`: for each turn its `queue` seconds, None where they are not known, its other `policy` seconds, and
        `user` and `environment` seconds between its message and the next turn's, or None where they cannot be placed.
        `rest`: the seconds of `queue`, `policy`, `user`, `environment` and `evaluation` that are in no turn.
    """
    timing, turns = trajectory.timing, trajectory.turns
    by_turn: list[dict[str, float | None]] = [
        {"queue": turn.queue_seconds, "policy": max(0.0, turn.policy_seconds - (turn.queue_seconds or 0.0))}
        for turn in turns
    ]
    rest = {"queue": timing.queue_seconds, "evaluation": timing.evaluation_seconds}
    rest["policy"] = max(0.0, timing.policy_seconds - sum(turn.policy_seconds for turn in turns))
    gaps = _gaps(trajectory)
    for part, recorded in (("user", timing.user_seconds), ("environment", timing.environment_seconds)):
        placed = [turn[part] for turn in gaps] if gaps is not None else None
        if placed is None or sum(placed) > recorded * 1.05 + _TOLERANCE:
            placed = None
        for number, turn in enumerate(by_turn):
            turn[part] = None if placed is None else placed[number]
        rest[part] = max(0.0, recorded - sum(placed or ()))
    return {"turns": by_turn, "rest": rest}


def _gaps(trajectory: Trajectory) -> list[dict[str, float]] | None:
    """For each turn, seconds of user and environment after its message; None: the messages do not say."""
    indices = [turn.message_index for turn in trajectory.turns]
    times = [_time(message) for message in trajectory.messages]
    known = [index for index in indices if index is not None]
    if not known or known != sorted(set(known)) or known[0] < 0 or known[-1] >= len(times):
        return None
    gaps = [{"user": 0.0, "environment": 0.0} for _ in indices]
    owner = {index: number for number, index in enumerate(indices) if index is not None}
    turn = owner[known[0]]
    for at in range(known[0] + 1, len(times)):
        if at in owner:
            turn = owner[at]
            continue
        now, before = times[at], times[at - 1]
        if now is None or before is None or now < before:
            return None
        role = trajectory.messages[at].get("role")
        gaps[turn]["user" if role == "user" else "environment"] += now - before
    return gaps


def _time(message: dict[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(message["timestamp"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
