"""TaskRef: the name of a task.

Invariant: it says where a task stands in τ²-bench and holds nothing of the task itself, so any process can have it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class TaskRef:
    """Names one τ²-bench task."""

    domain: str
    split: str
    task_id: str
    index: int
    """Position of the task in its split, as τ² orders it."""

    def __str__(self) -> str:
        return f"{self.domain}/{self.split}/{self.task_id}"
