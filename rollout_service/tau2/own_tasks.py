"""Tasks of one's own: a file in τ²-bench's JSON, checked by τ²-bench.

Invariant: a task that τ²-bench would not take, or whose gold actions no tool of the domain can do, is refused before an
episode runs, with its id and the field.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from rollout_service.config import task_file
from rollout_service.errors import TaskError
from rollout_service.tau2 import compat


def is_file(split: str) -> bool:
    """Whether a split's name is the path of a file of tasks."""
    return split.endswith(".json")


def load(domain: str, path: str) -> list[compat.Task]:
    """The tasks of the file.

    Raises:
        TaskError: the file cannot be read, or a task cannot be used. Names the task and the field.
    """
    return [_task(domain, path, record["id"], record) for record in task_file.read(Path(path))]


def _task(domain: str, path: str, task_id: str, record: object) -> compat.Task:
    try:
        task = compat.Task.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise TaskError(
            f"tasks.path: task {task_id!r} of {path}: {where}: {first['msg']}.",
            f"Correct the field; {compat.DISTRIBUTION} {compat.VERSION} refuses the task.",
        ) from error
    _check_actions(domain, path, task)
    return task


def _check_actions(domain: str, path: str, task: compat.Task) -> None:
    """Check that the gold actions name tools. τ² passes over one that it cannot do, and would reward doing nothing.

    Raises:
        TaskError: one names none.
    """
    from rollout_service.tau2.domain import get

    actions = (task.evaluation_criteria.actions or []) if task.evaluation_criteria else []
    if not actions:
        return
    world = get(domain).original()
    kits = {"assistant": world.tools, "user": world.user_tools}
    for place, action in enumerate(actions):
        kit = kits[action.requestor]
        if kit is None or not kit.has_tool(action.name):
            raise TaskError(
                f"tasks.path: task {task.id!r} of {path}: evaluation_criteria.actions.{place}.name: the "
                f"{action.requestor} has no tool {action.name!r} in {domain}.",
                "Correct the name, or its requestor, or set tasks.domain to the domain of the file.",
            )
