"""Slots: the episodes of one process, each in a thread of its own.

Invariant: the event loop only passes policy calls on. Everything else in an episode may block, because it runs in the
episode's thread. An episode that nobody waits for any more ends.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import rollout_service.logs as logs
from rollout_service.collecting.request import EpisodeRequest, aborted_trajectory
from rollout_service.errors import Fault, FaultKind
from rollout_service.record.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollout_service.tau2.deadline import Deadline

T = TypeVar("T")


class Runner(Protocol):
    """What plays an episode, see `rollout_service.tau2.episode.EpisodeRunner`."""

    def run(self, request: EpisodeRequest, deadline: Deadline, /) -> Trajectory:
        """Play the episode to its end."""


_log = logs.logger(__name__)

_START_INTERVAL = 0.02
"""Seconds between the starts of two episodes. The start is an episode's most expensive step, about 10 ms under the
interpreter's lock. If all slots started at once, the first policy calls would wait for the last start."""


class Slots:
    """Runs a fixed number of episodes at a time; others wait for a slot. Use it in one event loop."""

    def __init__(self, count: int, wall_seconds: float, stuck_seconds: float = math.inf) -> None:
        """
        Args:
            count: number of slots.
            wall_seconds: longest time of an episode, from its start.
            stuck_seconds: how much longer its thread may take to end.
        """
        self._wall_seconds = wall_seconds
        self._stuck_seconds = stuck_seconds
        self.stuck = 0
        """Slots whose thread hangs. They take no further episode before it ends."""
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="slot")
        self._free = asyncio.Semaphore(count)
        self._deadlines: dict[str, Deadline] = {}
        self._min_versions: Mapping[str, int] = {}
        """By collection id, see `cut`."""
        self._next_start = 0.0

    async def do(self, work: Callable[[], T]) -> T:
        """Run `work` in a slot's thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def run(self, runner: Runner, request: EpisodeRequest) -> Trajectory:
        """Run one episode to its end.

        Raises:
            RolloutError: the request cannot be met at all.
        """
        from rollout_service.tau2.deadline import Deadline

        loop = asyncio.get_running_loop()
        asked = loop.time()
        await self._free.acquire()
        thread: asyncio.Future[Trajectory] | None = None
        try:
            self._next_start = max(self._next_start + _START_INTERVAL, loop.time())
            delay = self._next_start - loop.time()
            deadline = Deadline(delay + self._wall_seconds, request.collection_id)
            self._deadlines[request.trajectory_id] = deadline
            deadline.require(self._min_versions.get(request.collection_id, 0))
            try:
                await asyncio.sleep(delay)
                started = replace(request, waited_seconds=request.waited_seconds + loop.time() - asked)
                thread = loop.run_in_executor(self._threads, deadline.run, lambda: runner.run(started, deadline))
                await asyncio.wait([thread], timeout=self._wall_seconds + self._stuck_seconds)
                return thread.result() if thread.done() else self._abandoned(started, deadline)
            except asyncio.CancelledError:
                deadline.cancelled.set()
                raise
            finally:
                if self._deadlines.get(request.trajectory_id) is deadline:  # else the episode was begun once more here
                    del self._deadlines[request.trajectory_id]
        finally:
            if thread is None or thread.done():
                self._free.release()
            else:
                self.stuck += 1
                thread.add_done_callback(self._freed)

    def _abandoned(self, request: EpisodeRequest, deadline: Deadline) -> Trajectory:
        """The trajectory of an episode whose thread hangs. It holds the thread's stack."""
        deadline.cancelled.set()
        text = f"its thread hangs in {deadline.place} after {deadline.age:.0f} s (limits.stuck_seconds)"
        fault = Fault(FaultKind.SERVICE, "StuckSlot", text, retryable=True, traceback=deadline.stack())
        logs.log_fault(_log, request.trajectory_id, fault, request.attempt)
        return aborted_trajectory(request, fault)

    def _freed(self, thread: asyncio.Future[Trajectory]) -> None:
        """A thread that hung has ended after all."""
        self.stuck -= 1
        self._free.release()
        thread.exception()  # nobody waits for it

    def places(self) -> dict[str, tuple[float, str]]:
        """By trajectory id of each running episode: seconds since it got a slot, and where it is (`Deadline.place`)."""
        return {name: (deadline.age, deadline.place) for name, deadline in self._deadlines.items()}

    def cut(self, min_versions: Mapping[str, int]) -> None:
        """End the episodes that sampled with weights older than their collection's version here, and those that will
        have by the end of their turn. They come back as aborted.

        Args:
            min_versions: by collection id; of all collections that have such a version.
        """
        self._min_versions = min_versions
        for deadline in self._deadlines.values():
            deadline.require(min_versions.get(deadline.collection_id, 0))

    def cancel(self, trajectory_ids: Iterable[str]) -> None:
        """End these episodes soon. They come back as aborted."""
        for trajectory_id in trajectory_ids:
            if trajectory_id in self._deadlines:
                self._deadlines[trajectory_id].cancelled.set()
