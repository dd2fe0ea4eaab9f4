"""TerminationReason: why an episode ended.

Invariant: its values are what trajectories store, so a value never changes. τ² may have further reasons of its own,
which differ between its versions; a trajectory stores them as τ² names them.
"""

from __future__ import annotations

from enum import StrEnum


class TerminationReason(StrEnum):
    """The reasons that this service gives or acts on."""

    USER_STOP = "user_stop"
    """τ²'s: the user ended the conversation."""
    AGENT_STOP = "agent_stop"
    """τ²'s: the policy ended the conversation."""
    AGENT_ERROR = "agent_error"
    """τ²'s: the policy broke the protocol."""
    MAX_STEPS = "max_steps"
    """τ²'s: `limits.max_steps` was reached."""
    TOO_MANY_ERRORS = "too_many_errors"
    """τ²'s: `limits.max_errors` was reached."""
    MAX_TURNS = "max_turns"
    """`limits.max_turns` was reached."""
    CONTEXT_LENGTH = "context_length"
    """The prompt left no room for a turn in the policy's context."""
    RESPONSE_LENGTH = "response_length"
    """`policy.response_length` was reached."""
    WALL_TIME = "wall_time"
    """`limits.wall_seconds` was reached."""
    CANCELLED = "cancelled"
    """The episode was cancelled."""
    FAULT = "fault"
    """A fault stopped the episode; the trajectory has it."""


UNSCORED = frozenset({TerminationReason.CANCELLED, TerminationReason.FAULT, TerminationReason.WALL_TIME})
"""Reasons that say nothing about the policy. An episode that ended for one of them has no reward."""
