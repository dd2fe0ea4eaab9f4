"""τ²-bench tasks by name.

Invariant: a task set is parsed once per process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rollout_service.config.selection import read_domain, read_ids
from rollout_service.errors import TaskError
from rollout_service.record.trajectory import TaskRef
from rollout_service.task_sampling.pool import TaskPool
from rollout_service.tau2 import compat, own_tasks, source_files
from rollout_service.tau2.once import once

WHOLE_SET = "base"
"""Name of the one split of a domain that has none."""

# Task sets that repeat a split of another set under a name of their own; they have no environment.
_ALIASES = {"telecom_full", "telecom_small"}


def domains() -> list[str]:
    """Every domain that has both an environment and tasks."""
    return [
        name
        for name in compat.registry.get_task_sets()
        if name not in _ALIASES and name in compat.registry.get_domains()
    ]


@once
def splits(domain: str) -> dict[str, list[str]]:
    """Split name to task ids, in τ²'s order.

    Raises:
        TaskError: unknown domain; lists the known ones.
    """
    if domain not in domains():
        raise TaskError(f"tasks.domain: there is no domain {domain!r}.", f"Choose one of {', '.join(domains())}.")
    source_files.of(domain)
    named = compat.task_splits(domain)
    if not named:
        return {WHOLE_SET: [str(task.id) for task in compat.registry.get_tasks_loader(domain)()]}
    return {name: [str(task_id) for task_id in ids] for name, ids in named.items()}


@once
def _task_set(domain: str, split: str) -> dict[str, compat.Task]:
    known = splits(domain)
    if own_tasks.is_file(split):
        return {task.id: task for task in own_tasks.load(domain, split)}
    if split not in known:
        raise TaskError(f"tasks.split: {domain} has no split {split!r}.", f"Choose one of {', '.join(sorted(known))}.")
    loader = compat.registry.get_tasks_loader(domain)
    tasks = loader() if compat.task_splits(domain) is None else loader(split)
    return {str(task.id): task for task in tasks}


def references(domain: str, split: str = WHOLE_SET, ids: Sequence[str] | None = None) -> list[TaskRef]:
    """The tasks of a split, or those of them named in `ids`, in that order.

    A split may be the path of a file of tasks, see `own_tasks`.

    Raises:
        TaskError: unknown domain, split or id; lists the valid ones. Or `ids` is text, or has no entry.
    """
    for name, value in (("domain", domain), ("split", split)):
        if not isinstance(value, str):
            raise TaskError(f"tasks.{name} is {value!r}.", f"Give the name of one {name}.")
    tasks = list(_task_set(domain, split))
    if ids is None:
        return [TaskRef(domain, split, task_id, index) for index, task_id in enumerate(tasks)]
    ids = read_ids(ids, "tasks.ids")
    positions = {task_id: index for index, task_id in enumerate(tasks)}
    unknown = [task_id for task_id in ids if task_id not in positions]
    if unknown:
        shown = ", ".join(tasks[:20]) + (f", … ({len(tasks)} in all)" if len(tasks) > 20 else "")
        raise TaskError(f"tasks.ids: {domain}/{split} has no task {', '.join(map(repr, unknown))}.", f"Valid: {shown}.")
    return [TaskRef(domain, split, task_id, positions[task_id]) for task_id in ids]


def get(reference: TaskRef) -> compat.Task:
    """The τ² task. Shared: don't change it.

    Raises:
        TaskError: there is no such task.
    """
    found = _task_set(reference.domain, reference.split).get(reference.task_id)
    if found is None:
        references(reference.domain, reference.split, [reference.task_id])  # raises, with the valid ids
        raise AssertionError(f"{reference} is in its split and yet not there")
    return found


_REMARKS = {"description", "issues", "annotations"}
"""Fields that shape neither a task's conversation nor its score."""


def content(task: compat.Task) -> dict[str, Any]:
    """What the task asks for and how it is scored, as JSON values. Fields that are not set are left out. Of its opening
    messages only what the task's file says counts: τ² fills in the time of reading, and newer releases more fields."""
    values: dict[str, Any] = task.model_dump(mode="json", exclude=_REMARKS, exclude_none=True)
    if opening := values.get("initial_state", {}).get("message_history"):
        said = task.initial_state.message_history
        opening[:] = [message.model_dump(mode="json", exclude_unset=True, exclude_none=True) for message in said]
    return values


def content_hash(task: compat.Task) -> str:
    """16 hexadecimal digits of the SHA-256 of the task's `content`, equal in releases that know more fields."""
    return hashlib.sha256(json.dumps(content(task), sort_keys=True).encode()).hexdigest()[:16]


@once
def hash_of(reference: TaskRef) -> str:
    """`content_hash` of the task.

    Raises:
        TaskError: there is no such task.
    """
    return content_hash(get(reference))


def pool(
    domain: str | Mapping[str, float],
    split: str = WHOLE_SET,
    ids: Sequence[str] | None = None,
    choose: Callable[[str, str, Sequence[str] | None], list[TaskRef]] = references,
) -> TaskPool:
    """The tasks that a sampler draws from.

    Args:
        domain: a domain, or weights by domain.
        ids: only these tasks, of one domain.
        choose: gives the tasks of a domain and split; `TaskChoice.references` leaves some out.

    Raises:
        TaskError: unknown domain, split or id; a mix with a bad weight, or with `ids`.
    """
    chosen = read_domain(domain, "tasks.domain")
    weights = {chosen: 1.0} if isinstance(chosen, str) else chosen
    if ids is not None and len(weights) > 1:
        raise TaskError("tasks.ids goes with one domain, not with a mix.", "Leave out one of them.")
    return TaskPool({name: choose(name, split, ids) for name in weights}, weights)


def episode_seed(seed: int, task: TaskRef, draw: int, sample_index: int) -> int:
    """Seed of one episode in [0, 2**31): differs between samples and draws of a task, equal across processes."""
    text = f"{seed}:{task.domain}:{task.task_id}:{draw}:{sample_index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF
