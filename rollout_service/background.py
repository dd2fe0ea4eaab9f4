"""Background tasks of a process that lives long.

Invariant: no task fails unseen. A task is kept until it ends, and what it raises is logged with its stack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import rollout_service.logs as logs

T = TypeVar("T")

_log = logs.logger(__name__)


class BackgroundTasks:
    """The tasks that one object started and does not wait for. Use it in one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        """Run `work`, and log it as an error if it raises.

        Args:
            what: names the task in that line, such as "catching up with the newest weights".
        """
        task = asyncio.ensure_future(work)
        task.set_name(what)
        self._tasks.add(task)  # the event loop itself keeps only a weak reference
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            what = task.get_name()
            _log.error("Background task failed: %s.", what, exc_info=error, extra=logs.event(f"failed task {what}"))
