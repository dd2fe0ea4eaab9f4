"""GroupStream: the groups of one collection, as a trainer takes them.

Invariant: each group is given once and whole, and an interrupted wait loses none. Closing the stream cancels what is
left of the collection. A long wait logs what it waits for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Self

import rollout_service.logs as logs
import rollout_service.twins as twins
from rollout_service.cluster import LostObject, NoAnswerYet, Reference, answer, as_argument, fetched, reachable
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.collecting.group import Group
from rollout_service.collecting.request import Accepted, EpisodeRequest, aborted_trajectory
from rollout_service.collecting.waits import waits_for
from rollout_service.errors import Fault, FaultKind, RolloutError
from rollout_service.record.trajectory import Trajectory

_log = logs.logger(__name__)

_PATIENCE_SECONDS = 60.0
"""Seconds of waiting until the log says what for. The time until it says so again doubles."""

_MOST_PATIENCE_SECONDS = 960.0

_STATUS_SECONDS = 10.0
"""Timeout of the call that asks the service for its status."""


class GroupStream(Iterator[list[Trajectory]], AsyncIterator[list[Trajectory]]):
    """The groups of one collection, in order of completion; iterate with `for` or `async for`."""

    def __init__(self, coordinator: CoordinatorHandle, submission: Reference[Accepted]) -> None:
        self._coordinator = coordinator
        self._submission = submission
        self._pending: Reference[Group | None] | None = None
        self._finished = False
        self._waiting_since = time.monotonic()
        self._patience = _PATIENCE_SECONDS
        self.collection_id = ""
        self.episodes = 0
        """Episodes that the whole collection has; known once it is open."""
        self.first_draw = 0
        """Tasks of the selection's sequence that earlier collections drew; known once it is open."""

    async def aopen(self) -> None:
        """Wait until the collection is accepted.

        Raises:
            TaskError: it was not.
        """
        if self.collection_id:
            return
        try:
            self.collection_id, self.episodes, self.first_draw = await answer(self._submission)
        except RolloutError:
            self._finished = True  # what was never accepted need not be cancelled
            raise

    open = twins.blocking(aopen)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Trajectory]:
        trajectories = twins.run(self._next_group())
        if trajectories is None:
            raise StopIteration
        self._handed_over()
        return trajectories

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Trajectory]:
        trajectories = await self._next_group()
        if trajectories is None:
            raise StopAsyncIteration
        self._handed_over()
        return trajectories

    async def _next_group(self) -> list[Trajectory] | None:
        """The group that is to be given next, or None at the end. Asked again before `_handed_over`, it is the same."""
        if self._finished:
            return None
        await self.aopen()
        group = await self._arrived(self._reference())
        if group is None or self._finished:
            self._finished = True
            return None
        found = await fetched(group.trajectories)
        return [given(*item) for item in zip(group.requests, found, strict=True)]

    async def _arrived(self, reference: Reference[Group | None]) -> Group | None:
        """The coordinator's answer, however long it takes. A long wait logs now and then what it waits for."""
        while True:
            try:
                return await answer(reference, seconds=self._left())
            except NoAnswerYet:
                waited = time.monotonic() - self._waiting_since
                self._patience = waited + min(self._patience, _MOST_PATIENCE_SECONDS)
                with contextlib.suppress(Exception):  # the wait itself says what is wrong
                    status = await answer(self._coordinator.status.remote(), seconds=_STATUS_SECONDS)
                    reason = waits_for(status, self.collection_id)
                    _log.warning(
                        "Collection %s: no group for %.0f s; waiting for %s.", self.collection_id, waited, reason
                    )

    def _handed_over(self) -> None:
        """The group is the caller's; what comes now is another wait."""
        self._pending = None
        self._patience = _PATIENCE_SECONDS

    def _reference(self) -> Reference[Group | None]:
        """Reference of the next group. Kept until the group was given: an interrupted wait must not lose it."""
        if self._pending is None:
            self._pending = self._coordinator.next_group.remote(self.collection_id)
            self._waiting_since = time.monotonic()
        return self._pending

    def _left(self) -> float:
        """Seconds until it is time to say what is waited for."""
        return max(0.0, self._waiting_since + self._patience - time.monotonic())

    def close(self) -> None:
        """Cancel what has not finished yet. Returns at once."""
        if not self._finished and reachable(self._submission):
            self._coordinator.cancel_submitted.remote(as_argument(self._submission))
        self._finished = True

    async def aclose(self) -> None:
        """Cancel what has not finished yet. Returns when nothing of the collection reaches the policy any more."""
        if not self._finished:
            self._finished = True
            await answer(self._coordinator.cancel_submitted.remote(as_argument(self._submission)))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be on its way out
            self.close()


def given(request: EpisodeRequest, found: Trajectory | LostObject) -> Trajectory:
    """The trajectory of the request, or what stands for it when its object was lost."""
    if isinstance(found, Trajectory):
        return found
    text = f"the finished trajectory was lost: {type(found.error).__name__}"
    return aborted_trajectory(request, Fault.of(FaultKind.SERVICE, found.error, message=text, retryable=True))
