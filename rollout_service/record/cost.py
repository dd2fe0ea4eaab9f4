"""Cost: what episodes cost in US dollars, and what more of them will.

Invariant: a cost that is not known is counted as not known, and never as 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rollout_service.record.interval import Z


@dataclass(slots=True)
class Cost:
    """What some episodes cost: their user simulators, reviewers and judges."""

    episodes: int = 0
    unknown: int = 0
    """Episodes whose cost is not known."""
    known_usd: float = 0.0
    """US dollars of all others."""

    def add(self, usd: float | None) -> None:
        """Count an episode. None: its cost is not known."""
        self.episodes += 1
        if usd is None:
            self.unknown += 1
        else:
            self.known_usd += usd

    @property
    def usd(self) -> float | None:
        """US dollars of all. None: one episode's cost is not known."""
        return None if self.unknown else self.known_usd

    @property
    def per_episode(self) -> float | None:
        """Mean over the episodes whose cost is known. None: there is none."""
        known = self.episodes - self.unknown
        return self.known_usd / known if known else None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {
            "usd": self.usd,
            "known_usd": self.known_usd,
            "episodes": self.episodes,
            "unknown": self.unknown,
            "per_episode_usd": self.per_episode,
        }

    def __str__(self) -> str:
        mean = self.per_episode
        if mean is None:
            return "not known" if self.episodes else "$0.0000"
        each = f", ${mean:.4f} an episode"
        if not self.unknown:
            return f"${self.known_usd:.4f}{each}"
        return f"not known for {self.unknown} of {self.episodes} episodes; the others ${self.known_usd:.4f}{each}"


def total(costs: Iterable[float | None]) -> float | None:
    """The sum of US dollars. None: one of them is not known."""
    given = list(costs)
    known = [cost for cost in given if cost is not None]
    return sum(known) if len(known) == len(given) else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a number of episodes will cost."""

    usd: float
    interval: tuple[float, float] | None
    """95% interval of the sum. None: one episode says nothing about the spread."""


def estimate(seen: Sequence[float], episodes: int) -> Estimate:
    """What so many episodes will cost, if they are like those seen.

    The interval holds both kinds of doubt: the new episodes differ from each other, and the mean of those seen is not
    the true one. It takes episodes as independent, so it is too narrow if few tasks were seen.

    Args:
        seen: US dollars of each episode seen; not empty.
    """
    mean = statistics.fmean(seen)
    if len(seen) < 2:
        return Estimate(mean * episodes, None)
    spread = statistics.stdev(seen) * math.sqrt(episodes + episodes**2 / len(seen))
    return Estimate(mean * episodes, (max(0.0, mean * episodes - Z * spread), mean * episodes + Z * spread))
