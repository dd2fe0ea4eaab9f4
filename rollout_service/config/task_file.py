"""A file of tasks in τ²-bench's JSON, read without τ²-bench.

Invariant: two files with the same contents have the same hashes, however they are laid out, so any process can tell
which tasks of a file changed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rollout_service.errors import TaskError


def read(path: str | Path) -> list[dict[str, Any]]:
    """The tasks of the file, of which nothing is known but that each has an id, and that no two have the same.

    Raises:
        TaskError: the file cannot be read, or is no list of tasks with ids. Names the task.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"tasks.path: {path} cannot be read: {error}.", "Name a file in τ²-bench's JSON.") from error
    if not isinstance(found, list) or not found:
        raise TaskError(f"tasks.path: {path} is no list of tasks.", "Write a JSON list, as τ²-bench's tasks.json is.")
    seen: set[str] = set()
    for place, task in enumerate(found):
        task_id = task.get("id") if isinstance(task, dict) else None
        if not isinstance(task_id, str) or not task_id:
            raise TaskError(f"tasks.path: task number {place} of {path} has no id.", "Give it an id, as text.")
        if task_id in seen:
            raise TaskError(f"tasks.path: {path} has the task {task_id!r} twice.", "Give each task an id of its own.")
        seen.add(task_id)
    return found


def hashes(path: str | Path) -> dict[str, str]:
    """The first 16 hexadecimal digits of the SHA-256 of each task's JSON, by id.

    Raises:
        TaskError: as `read`.
    """
    texts = {task["id"]: json.dumps(task, sort_keys=True) for task in read(path)}
    return {task_id: hashlib.sha256(text.encode()).hexdigest()[:16] for task_id, text in texts.items()}


def difference(then: dict[str, str], now: dict[str, str]) -> str:
    """How the tasks of a file changed, in words; empty: they did not."""
    kinds = {
        "changed": [task_id for task_id in then if task_id in now and then[task_id] != now[task_id]],
        "gone": [task_id for task_id in then if task_id not in now],
        "new": [task_id for task_id in now if task_id not in then],
    }
    words = [f"{', '.join(map(repr, ids[:5]))}{' …' * (len(ids) > 5)} {kind}" for kind, ids in kinds.items() if ids]
    moved = not words and list(then) != list(now)
    return "its tasks stand in another order" if moved else "; ".join(words)
