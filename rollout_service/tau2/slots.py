"""Slots: the episodes of one process, each in a thread of its own.

Invariant: the event loop only passes policy calls on. Everything else in an episode may block, because it runs in the
episode's thread. An episode that nobody waits for any more ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from rollout_service.collecting.request import EpisodeRequest
from rollout_service.record.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollout_service.tau2.deadline import Deadline
    from rollout_service.tau2.episode import EpisodeRunner

T = TypeVar("T")

_START_INTERVAL = 0.02
"""Seconds between the starts of two episodes. The start is an episode's most expensive step, about 10 ms under the
interpreter's lock. If all slots started at once, the first policy calls would wait for the last start."""


class Slots:
    """Runs a fixed number of episodes at a time; others wait for a slot. Use it in one event loop."""

    def __init__(self, count: int, wall_seconds: float) -> None:
        """
        Args:
            count: number of slots.
            wall_seconds: longest time of an episode, from its start.
        """
        self._wall_seconds = wall_seconds
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="slot")
        self._free = asyncio.Semaphore(count)
        self._deadlines: dict[str, Deadline] = {}
        self._next_start = 0.0

    async def do(self, work: Callable[[], T]) -> T:
        """Run `work` in a slot's thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def run(self, runner: EpisodeRunner, request: EpisodeRequest) -> Trajectory:
        """Run one episode to its end.

        Raises:
            RolloutError: the request cannot be met at all.
        """
        from rollout_service.tau2.deadline import Deadline

        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with self._free:
            self._next_start = max(self._next_start + _START_INTERVAL, loop.time())
            delay = self._next_start - loop.time()
            deadline = self._deadlines[request.trajectory_id] = Deadline(delay + self._wall_seconds)
            try:
                await asyncio.sleep(delay)
                waited = request.waited_seconds + loop.time() - asked
                started = replace(request, waited_seconds=waited)
                return await self.do(lambda: runner.run(started, deadline))
            except asyncio.CancelledError:
                deadline.cancelled.set()
                raise
            finally:
                del self._deadlines[request.trajectory_id]

    def places(self) -> dict[str, tuple[float, str]]:
        """By trajectory id of each running episode: seconds since it got a slot, and where it is (`Deadline.place`)."""
        return {name: (deadline.age, deadline.place) for name, deadline in self._deadlines.items()}

    def cancel(self, trajectory_ids: Iterable[str]) -> None:
        """End these episodes soon. They come back as aborted."""
        for trajectory_id in trajectory_ids:
            if trajectory_id in self._deadlines:
                self._deadlines[trajectory_id].cancelled.set()
