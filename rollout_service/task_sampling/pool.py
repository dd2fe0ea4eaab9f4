"""TaskPool: the tasks that a sampler draws from.

Invariant: every domain has at least one task and a weight above 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rollout_service.errors import TaskError
from rollout_service.redaction import shown
from rollout_service.task_ref import TaskRef

_MOST_SHOWN = 5
"""Names that an error lists."""


class TaskPool:
    """The tasks of a selection by domain, and how much of the draws each domain gets."""

    def __init__(self, tasks: Mapping[str, Sequence[TaskRef]], weights: Mapping[str, float]) -> None:
        """
        Args:
            tasks: by domain, in the split's order.
            weights: of the same domains; finite and above 0.
        """
        self.tasks = {domain: list(of_domain) for domain, of_domain in tasks.items()}
        self.weights = dict(weights)
        """Of the domains: how their shares of the draws relate."""
        self.whole = [task for of_domain in self.tasks.values() for task in of_domain]
        """Every task once."""
        self.names = {name_of(task) for task in self.whole}
        """Names of the tasks, as `name_of` writes them."""

    def check_names(self, names: Iterable[object], field: str) -> None:
        """Check that each name is that of a domain or a task of the pool.

        Raises:
            TaskError: one is not.
        """
        unknown = [name for name in names if name not in self.tasks and name not in self.names]
        if not unknown:
            return
        more = f" and {len(unknown) - _MOST_SHOWN} more" if len(unknown) > _MOST_SHOWN else ""
        listed = ", ".join(map(shown, unknown[:_MOST_SHOWN]))
        raise TaskError(
            f"{field}: there is no domain or task {listed}{more} in this selection.",
            f"Name a domain ({', '.join(self.tasks)}), or a task as domain/id, such as {name_of(self.whole[0])}.",
        )


def name_of(task: TaskRef) -> str:
    """The task's name within a selection, which has one split: domain/id."""
    return f"{task.domain}/{task.task_id}"
