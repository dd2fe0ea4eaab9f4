"""TaskSampler: what every sampler of tasks can do.

Invariant: with the same tasks, settings and seed, the same calls in the same order give the same tasks, also when the
state goes to another sampler in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rollout_service.task_ref import TaskRef


class TaskSampler(Protocol):
    """An endless sequence of tasks of one selection. No method blocks."""

    @property
    def whole(self) -> list[TaskRef]:
        """Every task of the selection once."""

    @property
    def is_fixed(self) -> bool:
        """Whether what it draws depends on its seed and the position alone, so that it can be drawn ahead."""

    @property
    def drawn(self) -> int:
        """Number of tasks drawn so far."""

    def draw(self) -> TaskRef:
        """The next task."""

    def skip(self, draws: int) -> None:
        """Go on at the position that so many draws lead to. A sampler that is not fixed draws nothing for it."""

    def observe(self, task: TaskRef, rewards: Sequence[float | None]) -> dict[str, Any]:
        """Take the rewards of a finished group of episodes of the task.

        Args:
            rewards: None stands for an episode without a reward, such as one that a fault stopped. It says nothing of
                the task.

        Returns:
            What changed of the state, to be merged into it key by key; empty: nothing.
        """

    def facts(self) -> dict[str, Any]:
        """What a status says of it."""

    def state(self) -> dict[str, Any]:
        """All that another sampler of the same tasks and settings needs to go on, as values of JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the sampler was that gave this state.

        Raises:
            TaskError: it is no such state, or comes from another kind of sampler.
        """
