"""A task as a row of a trainer's data set.

Invariant: `named` gives back the task of which `fields` made the row, so a row names its task completely.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rollout_service.errors import ConfigError
from rollout_service.redaction import shown
from rollout_service.task_ref import TaskRef


def fields(task: TaskRef) -> dict[str, Any]:
    """The fields that a row names the task by: `domain`, `split`, `task_id` and `index`."""
    return dataclasses.asdict(task)


def named(row: Any, what: str, remedy: str) -> TaskRef:
    """The task that a row made with `fields` names.

    Args:
        row: the fields, as the trainer hands them over.
        what: says for the error where the row stands.
        remedy: says how to make rows that do name a task.

    Raises:
        ConfigError: a field is missing or has a wrong value.
    """
    try:
        names = {name: str(row[name]) for name in ("domain", "split", "task_id")}
        return TaskRef(**names, index=int(row["index"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} names no task: it is {shown(row)} ({error}).", remedy) from None
