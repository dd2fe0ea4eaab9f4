"""WeightedSampler: tasks by weights that the trainer gives, and may change at any time.

Invariant: the probability of a task is its domain's share times its weight over the weights of the domain's tasks. A
weight of 0 means never. New weights hold from the next draw on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout_service.config.selection import read_task_weights
from rollout_service.errors import TaskError
from rollout_service.redaction import shown
from rollout_service.task_ref import TaskRef
from rollout_service.task_sampling.chances import Chances
from rollout_service.task_sampling.pool import TaskPool, name_of
from rollout_service.task_sampling.state import REMEDY, checked


class WeightedSampler:
    """Independent draws by weights of domains and of tasks."""

    is_fixed = False
    """The weights may change."""

    def __init__(
        self, pool: TaskPool, weights: Mapping[str, float], *, seed: int = 0, field: str = "task_weights"
    ) -> None:
        """
        Args:
            weights, field: as for `set_weights`.

        Raises:
            TaskError: as `set_weights` raises it.
        """
        self._pool = pool
        self.whole = pool.whole
        self._seed = seed
        self.drawn = 0
        self.set_weights(weights, field)

    @property
    def probabilities(self) -> dict[TaskRef, float]:
        """Of each task, for the next draw."""
        return dict(self._chances.probabilities)

    def set_weights(self, weights: Mapping[str, float], field: str = "task_weights") -> None:
        """Draw by these weights from now on. They take the place of all earlier ones.

        Args:
            weights: by name of a domain, or of a task as domain/id. The weight of a domain is relative to those of the
                other domains, and one that is not named keeps that of the selection. The weight of a task is relative
                to the other tasks of its domain, and is 1 where it is not named.
            field: name of the setting or argument, for errors.

        Raises:
            TaskError: a weight is negative or no finite number, a name is unknown, or nothing could be drawn. The
                earlier weights still hold then.
        """
        weights = read_task_weights(weights, field) if weights else {}
        self._pool.check_names(weights, field)
        shares = {domain: weights.get(domain, given) for domain, given in self._pool.weights.items()}
        if not any(shares.values()):
            raise TaskError(f"{field}: every domain has weight 0.", "Give one of them a weight above 0.")
        for domain, tasks in self._pool.tasks.items():
            if shares[domain] and not any(weights.get(name_of(task), 1.0) for task in tasks):
                raise TaskError(
                    f"{field}: every task of {domain} has weight 0.",
                    f"Give one of them a weight above 0, or leave the domain out by {{{domain!r}: 0}}.",
                )
        self._weights = weights
        self._chances = Chances(self._pool, shares, weights)

    def draw(self) -> TaskRef:
        """The next task."""
        self.drawn += 1
        return self._chances.drawn_at(self._seed, self.drawn - 1)

    def skip(self, draws: int) -> None:
        """See `TaskSampler`."""
        self.drawn += draws

    def observe(self, task: TaskRef, rewards: Sequence[float | None]) -> dict[str, Any]:
        """Does nothing: the weights are the trainer's."""
        return {}

    def facts(self) -> dict[str, Any]:
        """See `TaskSampler`."""
        return self.state()

    def state(self) -> dict[str, Any]:
        """See `TaskSampler`."""
        return {"sampler": "weighted", "drawn": self.drawn, "weights": dict(self._weights)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `TaskSampler`."""
        drawn = checked(state, "weighted")
        if not isinstance(weights := state.get("weights"), Mapping):
            raise TaskError(f"weights in sampler_state are {shown(weights)}.", REMEDY)
        self.set_weights(weights)
        self.drawn = drawn
