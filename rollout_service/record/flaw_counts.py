"""FlawCounts: how often the user simulators of some episodes were at fault, by heuristics.

Invariant: a rate is over the episodes that somebody looked at. One with several flaws counts once for each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from rollout_service.record.interval import wilson_interval


@dataclass(slots=True)
class FlawCounts:
    """Counts of episodes."""

    episodes: int = 0
    """Episodes that somebody looked at."""
    flawed: int = 0
    """Those with any flaw."""
    by_flaw: Counter[str] = field(default_factory=Counter)
    """Episodes with each flaw."""

    def add(self, flaws: Collection[str] | None, count: int = 1) -> None:
        """Count one episode with these flaws.

        Args:
            flaws: None: nobody looked.
            count: -1: it is not counted any more.
        """
        if flaws is None:
            return
        self.episodes += count
        self.flawed += count * bool(flaws)
        for name in set(flaws):
            self.by_flaw[name] += count

    def to_dict(self) -> dict[str, Any]:
        """The rates as JSON values: `any` flaw and each that occurred, with its 95% confidence interval."""
        found = {"any": self.flawed} | dict(self.by_flaw.most_common())
        return {
            "episodes": self.episodes,
            "flaws": {
                name: {
                    "episodes": count,
                    "rate": count / self.episodes,
                    "interval": list(wilson_interval(count / self.episodes, self.episodes)),
                }
                for name, count in found.items()
                if self.episodes and (count or name == "any")
            },
        }
