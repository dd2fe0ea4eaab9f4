"""GroupStream: the groups of one collection, as a trainer takes them.

Invariant: a group is given once, whole; an interrupted wait loses none. Who stops taking groups cancels the rest. A
wait that takes long says what it waits for, in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import rollout_service.logs as logs
from rollout_service.cluster import answer, call
from rollout_service.collecting.request import EpisodeRequest, aborted_trajectory
from rollout_service.collecting.waits import waits_for
from rollout_service.errors import Fault, FaultKind, RolloutError
from rollout_service.record.trajectory import Trajectory

_log = logs.logger(__name__)

_PATIENCE_SECONDS = 60.0
"""Until a wait says what it waits for; twice as long until it says so again. Streams of one process take turns."""

_MOST_PATIENCE_SECONDS = 960.0

_STATUS_SECONDS = 10.0
"""Seconds that the service has to say how it stands."""


_said_at = float("-inf")


class GroupStream(Iterator[list[Trajectory]], AsyncIterator[list[Trajectory]]):
    """The groups of one collection, in order of completion; iterate with `for` or `async for`."""

    def __init__(self, coordinator: Any, submission: Any) -> None:
        self._coordinator = coordinator
        self._submission = submission
        self._pending: Any = None
        self._finished = False
        self._waiting_since = time.monotonic()
        self._patience = _PATIENCE_SECONDS
        self.collection_id = ""
        self.episodes = 0
        """Episodes that the whole collection has; known once it is open."""

    def open(self) -> None:
        """Wait until the collection was accepted.

        Raises:
            TaskError: it was not.
        """
        if not self.collection_id:
            with self._refused():
                self.collection_id, self.episodes = call(self._submission)

    async def aopen(self) -> None:
        """`open` for an event loop."""
        if not self.collection_id:
            with self._refused():
                self.collection_id, self.episodes = await answer(self._submission)

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """What was never accepted need not be cancelled."""
        try:
            yield
        except RolloutError:
            self._finished = True
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Trajectory]:
        import ray

        if self._finished:
            raise StopIteration
        self.open()
        reference = self._next()
        while not ray.wait([reference], timeout=self._left())[0]:
            with contextlib.suppress(Exception):  # the wait itself says what is wrong
                self._say(ray.get(self._coordinator.status.remote(), timeout=_STATUS_SECONDS))
        group = call(reference)
        if group is None or self._finished:
            self._finished = True
            raise StopIteration
        try:
            trajectories = list(ray.get(group.trajectories))
        except ray.exceptions.RayError:
            found = [_got(reference) for reference in group.trajectories]
            trajectories = [_given(*item) for item in zip(group.requests, found, strict=True)]
        self._handed_over()
        return trajectories

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Trajectory]:
        if self._finished:
            raise StopAsyncIteration
        await self.aopen()
        waiting = asyncio.ensure_future(answer(self._next()))
        try:
            while not (await asyncio.wait([waiting], timeout=self._left()))[0]:
                with contextlib.suppress(Exception):  # the wait itself says what is wrong
                    status = answer(self._coordinator.status.remote())
                    self._say(await asyncio.wait_for(status, _STATUS_SECONDS))
            group = waiting.result()
        finally:
            waiting.cancel()
        if group is None or self._finished:
            self._finished = True
            raise StopAsyncIteration
        found = await asyncio.gather(*group.trajectories, return_exceptions=True)
        trajectories = [_given(*item) for item in zip(group.requests, found, strict=True)]
        self._handed_over()
        return trajectories

    def _handed_over(self) -> None:
        """The group is the caller's; what comes now is another wait."""
        self._pending = None
        self._patience = _PATIENCE_SECONDS

    def _next(self) -> Any:
        """Reference of the next group. Kept until the group was given: an interrupted wait must not lose it."""
        if self._pending is None:
            self._pending = self._coordinator.next_group.remote(self.collection_id)
            self._waiting_since = time.monotonic()
        return self._pending

    def _left(self) -> float:
        """Seconds until it is time to say what is waited for."""
        return max(0.0, self._waiting_since + self._patience - time.monotonic())

    def _say(self, status: dict[str, Any]) -> None:
        """Log what is waited for, unless another stream of this process did so a moment ago."""
        global _said_at
        now = time.monotonic()
        self._patience = now - self._waiting_since + min(self._patience, _MOST_PATIENCE_SECONDS)
        if now - _said_at >= _PATIENCE_SECONDS:
            _said_at = now
            _log.warning(
                "Collection %s: no group for %.0f s; waiting for %s.",
                self.collection_id,
                now - self._waiting_since,
                waits_for(status, self.collection_id),
            )

    def close(self) -> None:
        """Cancel what has not finished yet."""
        import ray

        if not self._finished and ray.is_initialized():  # else a call would start a new cluster
            self._coordinator.cancel_submitted.remote(self._submission)
        self._finished = True

    async def aclose(self) -> None:
        """`close` for an event loop; returns when nothing of the collection reaches the policy any more."""
        if not self._finished:
            self._finished = True
            await answer(self._coordinator.cancel_submitted.remote(self._submission))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be on its way out
            self.close()


def _given(request: EpisodeRequest, found: Any) -> Trajectory:
    """The trajectory, or what stands for it when its object went down with a node."""
    from ray.exceptions import RayError

    if isinstance(found, RayError):
        text = f"the finished trajectory was lost: {type(found).__name__}"
        return aborted_trajectory(request, Fault(FaultKind.SERVICE, type(found).__name__, text, retryable=True))
    if isinstance(found, BaseException):
        raise found
    trajectory: Trajectory = found
    return trajectory


def _got(reference: Any) -> Any:
    """What the reference stands for, or the error that Ray raises instead."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return error
