"""EpisodeState: what a collection knows of one of its episodes, and what it hands on of it.

Invariant: `charged` is at most `attempts`: an attempt that does not count is still an attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class EpisodeState:
    """The state of one episode."""

    attempts: int = 0
    """Attempts that were started."""
    charged: int = 0
    """Attempts that count against `max_attempts`."""
    losses: int = 0
    """Attempts that were lost with their actor."""
    started: float = 0.0
    """When the last attempt started."""
    failed_on: set[str] = field(default_factory=set)
    """Actors on which attempts failed."""
    done: bool = False
    oldest_version: int | None = None
    """Oldest weight version of the result. None: the episode failed, or nothing was sampled."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of an episode's result after its process died."""

    attempt: int
    oldest_version: int | None
    failed: bool


@dataclass(frozen=True, slots=True)
class Handout:
    """A finished group that goes to the trainer now."""

    group: int
    expired: tuple[int, ...] = ()
    """Episodes of the group that are still too old after their last attempt. They count as failed."""
