"""Tau2TaskSource: τ²-bench's tasks, as the planner asks for them.

Invariant: making one costs nothing; the first question imports τ²-bench and parses the task set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rollout_service.record.trajectory import TaskRef
from rollout_service.task_sampling.pool import TaskPool

if TYPE_CHECKING:
    from rollout_service.config import RolloutConfig


class Tau2TaskSource:
    """A `rollout_service.collecting.planning.TaskSource`."""

    def __init__(self, config: RolloutConfig | None = None) -> None:
        """
        Args:
            config: leaves tasks out, see `TaskChoice`; None: all are there.
        """
        self._config = config

    def pool(self, domain: str | Mapping[str, float], split: str, ids: Sequence[str] | None) -> TaskPool:
        """The tasks of a selection, see `tasks.pool`, which has the errors too."""
        from rollout_service.tau2 import task_choice, tasks

        choose = tasks.references if self._config is None else task_choice.TaskChoice(self._config).references
        return tasks.pool(domain, split, ids, choose)

    def check(self, agent_kind: str, task: TaskRef) -> None:
        """Check that this kind of agent can play the task, see `agent.check_task`, which has the errors too."""
        from rollout_service.tau2 import agent, tasks

        agent.check_task(agent_kind, tasks.get(task))

    def episode_seed(self, seed: int, task: TaskRef, draw: int, sample_index: int) -> int:
        """Seed of one episode, see `tasks.episode_seed`."""
        from rollout_service.tau2 import tasks

        return tasks.episode_seed(seed, task, draw, sample_index)
