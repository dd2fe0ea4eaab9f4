"""EpisodeState: what a collection knows of one of its episodes, and what it hands on of it.

Invariant: `charged` is at most `attempts`: an attempt that does not count is still an attempt.
"""

from __future__ import annotations

from dataclasses import dataclass

SUSPECT_LOSSES = 3
"""Lost attempts after which an episode may be what kills its actors."""

MOST_CUTS = 10
"""Attempts of one episode that updates may end. After so many, the trainer updates faster than it can be played."""


@dataclass(slots=True)
class EpisodeState:
    """The state of one episode."""

    attempts: int = 0
    """Attempts that were started."""
    charged: int = 0
    """Attempts that count against `max_attempts`."""
    losses: int = 0
    """Attempts that were lost with their actor."""
    cuts: int = 0
    """Attempts that were ended in flight because they could no longer be in time."""
    started: float = 0.0
    """When the last attempt started."""
    failed_on: frozenset[str] = frozenset()
    """Actors on which attempts failed."""
    done: bool = False
    """Whether it has a result. A result that becomes too old is discarded, see `Collection.take`."""
    scored: bool = False
    """Whether its result has a score."""
    oldest_version: int | None = None
    """Oldest weight version of the result. None: the episode failed, or nothing was sampled."""

    @property
    def is_suspect(self) -> bool:
        """Whether the episode may be what kills its actors."""
        return self.losses >= SUSPECT_LOSSES

    @property
    def is_always_cut(self) -> bool:
        """Whether it was cut so often that it is given up."""
        return self.cuts >= MOST_CUTS


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of an episode's result after its process died."""

    attempt: int
    oldest_version: int | None
    failed: bool
    scored: bool = True


@dataclass(frozen=True, slots=True)
class Handout:
    """A finished group that goes to the trainer now."""

    group: int
    expired: tuple[int, ...] = ()
    """Episodes of the group that are still too old after their last attempt. They count as failed."""
