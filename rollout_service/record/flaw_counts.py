"""FlawCounts: how often the user simulators of some episodes were at fault, by heuristics or by a reviewer.

Invariant: a rate is over the episodes that somebody looked at. One with several flaws counts once for each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
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

    @property
    def least(self) -> float:
        """Lower end of the 95% interval of the rate of any flaw; 0 without an episode."""
        return wilson_interval(self.flawed / self.episodes, self.episodes)[0] if self.episodes else 0.0

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


def worst(by_task: Mapping[str, FlawCounts], most: int) -> dict[str, FlawCounts]:
    """The tasks, `most` of them, in which the user is most surely at fault: those with the highest `FlawCounts.least`
    first. A task without a flaw is none of them."""
    flawed = [(task, counts) for task, counts in by_task.items() if counts.flawed]
    return dict(sorted(flawed, key=lambda item: (-item[1].least, item[0]))[:most])
