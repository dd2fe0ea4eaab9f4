"""Estimate: a running estimate of how often the policy passes one task.

Invariant: it is the mean of a Beta distribution that starts as uniform and counts passes and failures, of which older
ones fade: an episode that `memory` others followed counts about a third. So it follows a policy that changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Bucket = Literal["new", "never", "hard", "medium", "easy", "always"]

NEVER, ALWAYS = 0.1, 0.9
"""Largest estimate of a task that is passed nearly never, and least one of a task that is passed nearly always."""

_HARD, _EASY = 0.4, 0.6
"""Estimates below and above which a task is hard or easy."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of one task."""

    passes: float = 0.0
    failures: float = 0.0

    def after(self, rewards: Sequence[float | None], memory: float) -> Estimate:
        """The estimate after a group's rewards.

        Args:
            rewards: one between 0 and 1 counts as that share of a pass. None and what is no finite number say nothing.
            memory: number of recent episodes that count.
        """
        shares = [min(max(reward, 0.0), 1.0) for reward in rewards if reward is not None and math.isfinite(reward)]
        kept = (1.0 - 1.0 / memory) ** len(shares)
        passed = math.fsum(shares)
        return Estimate(self.passes * kept + passed, self.failures * kept + len(shares) - passed)

    @property
    def rate(self) -> float:
        """Probability that an episode passes; 0.5 for a task of which nothing is known."""
        return (self.passes + 1.0) / (self.passes + self.failures + 2.0)

    @property
    def bucket(self) -> Bucket:
        """Which of the buckets the task is in."""
        if not self.passes and not self.failures:
            return "new"
        if self.rate <= NEVER:
            return "never"
        if self.rate >= ALWAYS:
            return "always"
        return "hard" if self.rate < _HARD else "easy" if self.rate > _EASY else "medium"
