"""GroupStream: the groups of one collection, as a trainer takes them.

Invariant: each group that is data is given once, and an interrupted wait loses none. A group is the caller's for good
when it is acknowledged: by asking for the next one, or explicitly. Where the coordinator is started again, the stream
asks it again, and leaves out what it has given. Closing the stream cancels what is left of the collection. A long wait
logs what it waits for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Self

import rollout_service.logs as logs
import rollout_service.twins as twins
from rollout_service.cluster import (
    LostObject,
    NoAnswerYet,
    Reference,
    answer,
    as_argument,
    fetched,
    pause,
    reachable,
    repeated,
)
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.collecting.group import Group
from rollout_service.collecting.judging import Judge, check_judged
from rollout_service.collecting.request import Accepted, EpisodeRequest, aborted_trajectory
from rollout_service.collecting.waits import waits_for
from rollout_service.errors import Fault, FaultKind, Interrupted, RolloutError, ServiceError
from rollout_service.record.trajectory import Trajectory

_log = logs.logger(__name__)

_PATIENCE_SECONDS = 60.0
"""Seconds of waiting until the log says what for. The time until it says so again doubles."""

_MOST_PATIENCE_SECONDS = 960.0

ACKNOWLEDGING = ("auto", "manual")
"""When a group counts as the caller's for good, see `GroupStream`."""

_TELL_SECONDS = 3.0
"""Seconds of waiting after which whoever shows progress is told what for, and told again."""

_STATUS_SECONDS = 10.0
"""Timeout of the call that asks the service for its status."""


class GroupStream(Iterator[list[Trajectory]], AsyncIterator[list[Trajectory]]):
    """The groups of one collection, in order of completion; iterate with `for` or `async for`."""

    def __init__(
        self,
        coordinator: CoordinatorHandle,
        submit: Callable[[], Reference[Accepted]],
        ack: str = "auto",
        client: str | None = None,
        takes_partial: bool = False,
        judge: Judge | None = None,
    ) -> None:
        """
        Args:
            takes_partial: whether it was asked for with a `min_group_size`, so that failed episodes in a group that is
                given are as they were asked for.
            judge: decides which groups are given; None: the service does, or all are.
            submit: asks for the collection. Called at once, and again where the coordinator's death cut the call off.
            ack: `auto`: whoever asks for the next group has the last one for good. `manual`: `ack` says so.
            client: id of the client that the collection belongs to. When another one has opened it again, this stream
                takes nothing more of it, and closing it cancels nothing.
        """
        self._coordinator = coordinator
        self._client = client
        self._submit = submit
        self._submission = submit()
        self._mode = ack
        self._judge = judge
        self._dropped: set[int] = set()
        """Numbers of the groups that the judge dropped."""
        self.dropped = 0
        """Groups that a filter dropped, as far as is known."""
        self._given: dict[str, int] = {}
        """Numbers of the groups that were given or withheld, by their ids."""
        self._came = 0
        """Trajectories that were given."""
        self._acknowledged: list[int] = []
        """Numbers of groups to be acknowledged with the next call."""
        self._interruptions = 0
        """Calls in a row that the coordinator's death cut off."""
        self._read_again: int | None = None
        """Number of the group that was asked for once more because its trajectories were lost."""
        self._pending: Reference[Group | None] | None = None
        self._finished = False
        self._waiting_since = time.monotonic()
        self._patience = _PATIENCE_SECONDS
        self.tell: Callable[[str], None] | None = None
        """Told what the next group waits for, again and again while it does not come."""
        self.takes_partial = takes_partial
        self.withheld: Callable[[list[Trajectory], str], None] | None = None
        """Called with each group that is no data, and why. It is not given; see `service.min_group_size`."""
        self.collection_id = ""
        self.episodes: int | None = 0
        """Episodes that the whole collection has; known once it is open. None: it is endless."""
        self.first_draw = 0
        """Tasks of the selection's sequence that earlier collections drew; known once it is open."""

    async def aopen(self) -> None:
        """Wait until the collection is accepted.

        Raises:
            TaskError: it was not.
        """
        while not self.collection_id:
            try:
                self.collection_id, self.episodes, self.first_draw, keeps = await answer(self._submission)
                check_judged(self.collection_id, keeps, self._judge is not None)
            except Interrupted as error:
                await self._after(error)
                self._submission = self._submit()
            except RolloutError:
                self._finished = True  # what was never accepted need not be cancelled
                raise
            else:
                self._interruptions = 0

    open = twins.blocking(aopen)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Trajectory]:
        while (found := twins.run(self._next_group())) is not None:
            if self._judge is None or self._judge.keeps(found[1]):
                return self._handed_over(*found)
            twins.run(self._drop(found[0].number))
        raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Trajectory]:
        while (found := await self._next_group()) is not None:
            if self._judge is None or self._judge.keeps(found[1]):
                return self._handed_over(*found)
            await self._drop(found[0].number)
        raise StopAsyncIteration

    async def aack(self, group: Sequence[Trajectory]) -> None:
        """Tell the service that the trainer has this group for good, with `ack="manual"`. Returns when that is safe.

        Raises:
            ServiceError: the stream acknowledges by itself, or it did not give this group.
        """
        if self._mode != "manual":
            raise ServiceError("This stream acknowledges by itself.", 'Open it with ack="manual".')
        names = {trajectory.group_id for trajectory in group}
        number = self._given.get(names.pop()) if len(names) == 1 else None
        if number is None:
            raise ServiceError("This is no group that the stream gave.", "Give one as it came.")
        await repeated(lambda: self._coordinator.acknowledge.remote(self.collection_id, (number,), self._client))

    ack = twins.blocking(aack)

    async def _next_group(self) -> tuple[Group, list[Trajectory]] | None:
        """The group that is to be given next, or None at the end. Asked again before `_handed_over`, it is the same."""
        while not self._finished:
            await self.aopen()
            group = await self._asked()
            if group is None or self._finished:
                self._finished = True
                return None
            self.dropped = max(self.dropped, group.dropped)
            if group.number in self._dropped:  # the service forgot it
                await self._drop(group.number)
                continue
            if group.requests[0].group_id in self._given:  # it came before the interruption already
                self._over(group)
                continue
            found = await fetched(group.trajectories)
            if self._read_again != group.number and any(isinstance(each, LostObject) for each in found):
                self._read_again = group.number  # a coordinator with a journal that died meanwhile has them on a disk
                self._interruptions += 1
                self._pending = None
                continue
            trajectories = [given(*item) for item in zip(group.requests, found, strict=True)]
            if not group.withheld:
                return group, trajectories
            self._withhold(group, self._handed_over(group, trajectories))
        return None

    async def _drop(self, number: int) -> None:
        """Have another group in the place of this one, which the judge dropped."""
        try:
            await repeated(lambda: self._coordinator.drop.remote(self.collection_id, (number,), self._client))
        except ServiceError:
            if self._finished:  # another thread closed the stream meanwhile
                return
            raise
        self.dropped += number not in self._dropped
        self._dropped.add(number)
        self._pending = None
        self._patience = _PATIENCE_SECONDS

    def _withhold(self, group: Group, trajectories: list[Trajectory]) -> None:
        """Report a group that is no data."""
        faults = sorted({f"{t.fault.kind}: {t.fault.message}" for t in trajectories if t.fault is not None})
        text = "Group %s of task %s is withheld: %s. %s"
        said = group.requests[0].group_id, group.requests[0].task, group.withheld, "; ".join(faults[:3])
        _log.warning(text, *said, extra=logs.event("withheld group"))
        if self.withheld is not None:
            self.withheld(trajectories, group.withheld)

    async def _asked(self) -> Group | None:
        """The coordinator's next group, asked for again where its death cut the call off."""
        while True:
            try:
                group = await self._arrived(self._reference())
            except Interrupted as error:
                await self._after(error)
                self._pending = None
            except ServiceError:
                forgotten = self._interruptions and self._came == self.episodes  # as it had all acknowledged
                if self._finished or forgotten:  # or another thread closed the stream meanwhile
                    return None
                raise
            else:
                self._interruptions = 0
                self._acknowledged.clear()
                return group

    async def _after(self, error: Interrupted) -> None:
        """Wait until it is time to call the coordinator again."""
        _log.warning("Collection %s: %s It is asked again.", self.collection_id or "not begun", error.problem)
        self._interruptions += 1
        await pause(self._interruptions)

    async def _arrived(self, reference: Reference[Group | None]) -> Group | None:
        """The coordinator's answer, however long it takes. A long wait logs now and then what it waits for."""
        while True:
            try:
                return await answer(reference, seconds=self._left())
            except NoAnswerYet:
                waited = time.monotonic() - self._waiting_since
                is_logged = waited >= self._patience
                if is_logged:
                    self._patience = waited + min(self._patience, _MOST_PATIENCE_SECONDS)
                with contextlib.suppress(Exception):  # the wait itself says what is wrong
                    status = await answer(self._coordinator.status.remote(), seconds=_STATUS_SECONDS)
                    reason = waits_for(status, self.collection_id)
                    if self.tell is not None:
                        self.tell(reason)
                    if is_logged:
                        text = "Collection %s: no group for %.0f s; waiting for %s."
                        _log.warning(text, self.collection_id, waited, reason)

    def _handed_over(self, group: Group, trajectories: list[Trajectory]) -> list[Trajectory]:
        """The group is the caller's; what comes now is another wait."""
        self._given[group.requests[0].group_id] = group.number
        self._came += len(trajectories)
        self._over(group)
        return trajectories

    def _over(self, group: Group) -> None:
        """Go on to the next group. Nobody can acknowledge one that was withheld."""
        if self._mode == "auto" or group.withheld:
            self._acknowledged.append(group.number)
        self._pending = None
        self._patience = _PATIENCE_SECONDS

    def _reference(self) -> Reference[Group | None]:
        """Reference of the next group. Kept until the group was given: an interrupted wait must not lose it."""
        if self._pending is None:
            self._pending = self._coordinator.next_group.remote(
                self.collection_id, tuple(self._acknowledged), self._interruptions > 0, self._client
            )
            self._waiting_since = time.monotonic()
        return self._pending

    def _left(self) -> float:
        """Seconds until it is time to say what is waited for."""
        left = max(0.0, self._waiting_since + self._patience - time.monotonic())
        return left if self.tell is None else min(left, _TELL_SECONDS)

    def close(self) -> None:
        """Cancel what has not finished yet. Returns at once. A reader in another thread comes to the stream's end."""
        was_finished, self._finished = self._finished, True
        if not was_finished and reachable(self._submission):
            self._coordinator.cancel_submitted.remote(as_argument(self._submission), self._client)

    async def aclose(self) -> None:
        """Cancel what has not finished yet. Returns when nothing of the collection reaches the policy any more."""
        if self._finished:
            return
        try:
            await self.aopen()
        except RolloutError:  # it was never accepted
            return
        self._finished = True
        await repeated(lambda: self._coordinator.cancel.remote(self.collection_id, self._client))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be on its way out
            self.close()


def given(request: EpisodeRequest, found: Trajectory | LostObject) -> Trajectory:
    """The trajectory of the request, or what stands for it when its object was lost."""
    if isinstance(found, Trajectory):
        return found
    text = f"the finished trajectory was lost: {type(found.error).__name__}"
    return aborted_trajectory(request, Fault.of(FaultKind.SERVICE, found.error, message=text, retryable=True))
