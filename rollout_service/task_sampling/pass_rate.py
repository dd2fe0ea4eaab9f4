"""PassRateSampler: tasks that the policy sometimes passes, and the others rarely.

Invariant: a task in the bucket `never` or `always` has the weight `floor`, every other one the weight 1. So each task's
probability is at least its domain's share times `floor` over the number of the domain's tasks, and is never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import rollout_service.config.arguments as arguments
from rollout_service.errors import TaskError
from rollout_service.redaction import shown
from rollout_service.task_ref import TaskRef
from rollout_service.task_sampling.chances import Chances
from rollout_service.task_sampling.estimate import Bucket, Estimate
from rollout_service.task_sampling.pool import TaskPool, name_of
from rollout_service.task_sampling.state import REMEDY, checked

_RARE: tuple[Bucket, ...] = ("never", "always")

_MOST_COUNTED = 1e12
"""Most episodes of one task that a state may tell of."""


class PassRateSampler:
    """Independent draws by buckets of the estimated pass rate."""

    is_fixed = False
    """What is observed changes what is drawn."""

    def __init__(self, pool: TaskPool, *, seed: int = 0, floor: float = 0.1, memory: float = 16.0) -> None:
        """
        Args:
            floor: weight of a task that is passed nearly always or nearly never; above 0, at most 1.
            memory: number of a task's recent episodes that its estimate counts; above 1.
        """
        self._pool = pool
        self.whole = pool.whole
        self._seed = seed
        self._floor = floor
        self._memory = memory
        self.drawn = 0
        self._estimates: dict[str, Estimate] = {}
        """By name of the task; those of which something is known."""
        self._chances: Chances | None = None
        """None: they have to be computed again."""

    @property
    def probabilities(self) -> dict[TaskRef, float]:
        """Of each task, for the next draw."""
        return dict(self._current().probabilities)

    @property
    def buckets(self) -> dict[str, int]:
        """Number of tasks in each bucket."""
        known = Counter(self.estimate(task).bucket for task in self.whole)
        return {name: known[name] for name in get_args(Bucket)}

    def estimate(self, task: TaskRef) -> Estimate:
        """What is known of the task."""
        return self._estimates.get(name_of(task), Estimate())

    def draw(self) -> TaskRef:
        """The next task."""
        self.drawn += 1
        return self._current().drawn_at(self._seed, self.drawn - 1)

    def skip(self, draws: int) -> None:
        """See `TaskSampler`."""
        self.drawn += draws

    def observe(self, task: TaskRef, rewards: Sequence[float | None]) -> dict[str, Any]:
        """See `TaskSampler`."""
        before, after = self.estimate(task), self.estimate(task).after(rewards, self._memory)
        if after == before:
            return {}
        self._estimates[name_of(task)] = after
        if self._weight(after) != self._weight(before):
            self._chances = None
        return {"tasks": {name_of(task): [after.passes, after.failures]}}

    def facts(self) -> dict[str, Any]:
        """See `TaskSampler`: the number of tasks in each bucket."""
        return {"sampler": "pass_rate", "drawn": self.drawn, "buckets": self.buckets}

    def state(self) -> dict[str, Any]:
        """See `TaskSampler`."""
        tasks = {name: [it.passes, it.failures] for name, it in self._estimates.items()}
        return {"sampler": "pass_rate", "drawn": self.drawn, "tasks": tasks}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `TaskSampler`. What it knows of tasks that are not of this selection is left aside."""
        drawn = checked(state, "pass_rate")
        if not isinstance(tasks := state.get("tasks"), Mapping):
            raise TaskError(f"tasks in sampler_state is {shown(tasks)}.", REMEDY)
        read = {name: _read(name, counts) for name, counts in tasks.items()}
        self._estimates = {name: estimate for name, estimate in read.items() if name in self._pool.names}
        self.drawn = drawn
        self._chances = None

    def _weight(self, estimate: Estimate) -> float:
        return self._floor if estimate.bucket in _RARE else 1.0

    def _current(self) -> Chances:
        if self._chances is None:
            weights = {name: self._weight(estimate) for name, estimate in self._estimates.items()}
            self._chances = Chances(self._pool, self._pool.weights, weights)
        return self._chances


def _read(name: object, counts: Any) -> Estimate:
    if not isinstance(counts, Sequence) or isinstance(counts, (str, bytes)) or len(counts) != 2:
        raise TaskError(f"tasks in sampler_state has {shown(counts)} for {shown(name)}.", REMEDY)
    return Estimate(
        *(arguments.number(f"{shown(name)} in sampler_state", it, 0.0, _MOST_COUNTED, TaskError) for it in counts)
    )
