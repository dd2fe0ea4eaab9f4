"""Chances: each task's probability of being the next one, and seeded draws by it.

Invariant: the probabilities add up to 1, and a draw is a function of the seed, its position and the probabilities.
Draws are independent of each other, so a sampler's place is a number, and no state of a generator need be kept.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import TypeVar

from rollout_service.task_ref import TaskRef
from rollout_service.task_sampling.pool import TaskPool, name_of

T = TypeVar("T")

_BITS = 53
"""Bits of a float's mantissa."""


class Chances:
    """Probabilities of a pool's tasks, made of weights."""

    def __init__(self, pool: TaskPool, shares: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """
        Args:
            shares: weight of each domain; not all of them 0.
            weights: of tasks by name, relative to the other tasks of the domain; 1 for a task that is not named. In a
                domain that has a share they are not all 0.
        """
        self.probabilities: dict[TaskRef, float] = {}
        """Of every task of the pool."""
        of_domains = _normalized(shares)
        for domain, tasks in pool.tasks.items():
            of_tasks = _normalized({task: weights.get(name_of(task), 1.0) for task in tasks})
            self.probabilities |= {task: of_domains[domain] * chance for task, chance in of_tasks.items()}
        self._possible = [task for task, chance in self.probabilities.items() if chance > 0]
        self._cumulative = list(accumulate(self.probabilities[task] for task in self._possible))

    def drawn_at(self, seed: int, position: int) -> TaskRef:
        """The task that is drawn at this position of a sequence."""
        place = bisect_right(self._cumulative, _uniform(seed, position) * self._cumulative[-1])
        return self._possible[min(place, len(self._possible) - 1)]


def _normalized(weights: Mapping[T, float]) -> dict[T, float]:
    """The weights, made to add up to 1; all 0 if all weights are. They may be as large or small as a float can be."""
    largest = max(weights.values()) or 1.0
    relative = {name: weight / largest for name, weight in weights.items()}
    total = math.fsum(relative.values()) or 1.0
    return {name: weight / total for name, weight in relative.items()}


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1), equal in every process and release of Python."""
    digest = hashlib.sha256(f"{seed}:draw:{position}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> (64 - _BITS)) / 2.0**_BITS
