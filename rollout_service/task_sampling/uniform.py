"""UniformSampler: every task of a domain once in each epoch.

Invariant: the sequence is a function of tasks, shares, order and seed. What is observed changes nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rollout_service.config.selection import Rotation
from rollout_service.task_ref import TaskRef
from rollout_service.task_sampling.pool import TaskPool
from rollout_service.task_sampling.state import checked


class UniformSampler:
    """Epoch by epoch through each domain; the domains take turns by weight, see `Rotation`."""

    is_fixed = True
    """Nothing changes the order."""

    def __init__(self, pool: TaskPool, *, shuffle: bool = True, seed: int = 0) -> None:
        """
        Args:
            shuffle: a new order each epoch; otherwise the pool's order.
        """
        self._pool = pool
        self.whole = pool.whole
        self._shuffle = shuffle
        self._seed = seed
        self._start()

    def _start(self) -> None:
        self.drawn = 0
        self._turns = Rotation(self._pool.weights, self._seed)
        self._epochs = self._made_epochs(0)

    def _made_epochs(self, start: int) -> dict[str, Iterator[TaskRef]]:
        """The tasks of each domain, without the first `start` ones."""
        return {
            name: _epochs(tasks, self._shuffle, f"{self._seed}:{name}", start)
            for name, tasks in self._pool.tasks.items()
        }

    def draw(self) -> TaskRef:
        """The next task."""
        self.drawn += 1
        return next(self._epochs[next(self._turns)])

    def observe(self, task: TaskRef, rewards: Sequence[float | None]) -> dict[str, Any]:
        """Does nothing: the order is fixed."""
        return {}

    def facts(self) -> dict[str, Any]:
        """See `TaskSampler`."""
        return {"sampler": "uniform", "drawn": self.drawn}

    def state(self) -> dict[str, Any]:
        """See `TaskSampler`."""
        return {"sampler": "uniform", "drawn": self.drawn}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `TaskSampler`."""
        drawn = checked(state, "uniform")
        self._start()
        self.skip(drawn)

    def skip(self, draws: int) -> None:
        """Go on after so many tasks."""
        if len(self._pool.tasks) == 1:
            self.drawn += draws
            self._epochs = self._made_epochs(self.drawn)
            return
        for _ in itertools.repeat(None, draws):  # the domains' turns are known one after the other only
            self.draw()


def _epochs(tasks: Sequence[TaskRef], shuffle: bool, seed: str, start: int) -> Iterator[TaskRef]:
    first, passed = divmod(start, len(tasks))
    for epoch in itertools.count(first):
        order = list(tasks)
        if shuffle:
            random.Random(f"{seed}:{epoch}").shuffle(order)
        yield from order[passed if epoch == first else 0 :]
