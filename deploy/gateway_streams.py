"""The collections of clients outside the cluster: begun, read group by group, and ended when nobody reads them.

Invariant: a request that is sent again under the same key does nothing twice. Whoever began a collection is the only
one who can read or end it. A client that was not heard for `gateway.idle_seconds` loses its collections.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import rollout_service.logs as logs
from rollout_service.background import BackgroundTasks
from rollout_service.cluster import LostObject, answer, fetched, pause, repeated
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.collecting.group import Group
from rollout_service.collecting.lease import renewal_seconds
from rollout_service.collecting.request import Accepted, CollectionRequest
from rollout_service.collecting.stream import given
from rollout_service.config import RolloutConfig
from rollout_service.errors import Interrupted, RolloutError, ServiceError
from rollout_service.gateway.delivery import Delivery, Missing
from rollout_service.gateway.wire import End, Writer, of_error
from rollout_service.record.trajectory import Trajectory

T = TypeVar("T")

_log = logs.logger(__name__)

_PIECE = 1 << 18
"""Most bytes of a group that are passed on at once: Serve's messages are bounded."""

_MOST_KEYS = 1000
"""Requests whose answers are kept for those who ask again."""


class Source:
    """The groups of one collection as the coordinator gives them, each once, also if it is started again meanwhile."""

    def __init__(self, coordinator: Callable[[], CoordinatorHandle], collection_id: str, again: bool) -> None:
        """
        Args:
            again: an earlier gateway may have taken groups that were not acknowledged: they are to come once more.
        """
        self._coordinator = coordinator
        self._collection_id = collection_id
        self._again = again
        self._given: set[int] = set()
        """Numbers of the groups that were given, as the coordinator numbers them."""
        self._held: dict[int, Group] = {}
        """Those of them that the reader does not have for good."""
        self._ahead: list[Group | None] = []
        """What came when a held group was asked for once more."""
        self._untold: list[int] = []
        """Numbers of groups that the reader has for good, of which the coordinator was not told."""
        self._asking = asyncio.Lock()

    async def take(self) -> Group | None:
        """The next group; None: there is no more."""
        async with self._asking:
            while True:
                group = self._ahead.pop() if self._ahead else await self._asked()
                if group is None:
                    return None
                if group.number not in self._given:
                    self._given.add(group.number)
                    self._held[group.number] = group
                    return group
                self._came_again(group)

    async def _asked(self) -> Group | None:
        """The coordinator's answer, which may be a group that was given before."""
        interruptions = 0
        while True:
            told = tuple(self._untold)
            try:
                group = await answer(self._coordinator().next_group.remote(self._collection_id, told, self._again))
            except Interrupted:
                self._again = True
                interruptions += 1
                await pause(interruptions)
                continue
            self._again = False
            self._untold = [number for number in self._untold if number not in told]
            return group

    def _came_again(self, group: Group) -> None:
        if (held := self._held.get(group.number)) is not None:
            held.trajectories[:] = group.trajectories  # the former ones went with a coordinator that died
        else:  # its death lost the acknowledgement
            self._untold.append(group.number)

    async def read(self, group: Group) -> list[Trajectory]:
        """The group's trajectories. If they went with the coordinator that owned them, its journal has them."""
        found = await fetched(group.trajectories)
        if any(isinstance(each, LostObject) for each in found) and not self._asking.locked():
            with contextlib.suppress(RolloutError):  # it ended: they are lost for good
                await self._ask_again_for(group)
            found = await fetched(group.trajectories)
        return [given(*item) for item in zip(group.requests, found, strict=True)]

    async def _ask_again_for(self, group: Group) -> None:
        async with self._asking:
            self._again = True
            while group.number in self._held:
                again = await self._asked()
                if again is None or again.number not in self._given:
                    self._ahead.append(again)
                    return
                self._came_again(again)
                if again.number == group.number:
                    return

    def release(self, group: Group) -> None:
        """Note that the reader has the group for good."""
        self._held.pop(group.number, None)
        self._untold.append(group.number)

    async def tell(self) -> None:
        """Tell the coordinator which groups the reader has for good. Returns when that is safe."""
        told = tuple(self._untold)
        if told:
            await answer(self._coordinator().acknowledge.remote(self._collection_id, told))
            self._untold = [number for number in self._untold if number not in told]


@dataclass(slots=True)
class Stream:
    """One collection on its way out."""

    collection_id: str
    owner: str
    """Name of the token that began it."""
    client: str
    """Id of the client that began it, as the coordinator knows it."""
    source: Source
    delivery: Delivery[Group]
    heard: float = field(default_factory=time.monotonic)
    readers: int = 0


class Streams:
    """The collections that the gateway began. Make and use it on one event loop."""

    def __init__(self, coordinator: Callable[[], CoordinatorHandle], config: RolloutConfig) -> None:
        """
        Args:
            coordinator: the service's coordinator, as it is now.
        """
        self._coordinator = coordinator
        self._config = config
        self._streams: dict[str, Stream] = {}
        self._answers: OrderedDict[tuple[str, str], asyncio.Task[Any]] = OrderedDict()
        self._tasks = BackgroundTasks()
        self._tasks.start(self._watch(), "watching the clients of the gateway")

    async def once(self, owner: str, key: str | None, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which goes on if its caller does not wait; of the same key it is done once."""
        found = None if key is None else self._answers.get((owner, key))
        if found is not None:
            work.close()
        else:
            found = asyncio.ensure_future(work)
            if key is not None:
                self._keep((owner, key), found)
        result: T = await asyncio.shield(found)
        return result

    def _keep(self, key: tuple[str, str], task: asyncio.Task[Any]) -> None:
        """Keep the answer for those who ask again. What failed is done anew."""
        self._answers[key] = task
        if len(self._answers) > _MOST_KEYS:
            self._answers.popitem(last=False)

        def ended(task: asyncio.Task[Any]) -> None:
            if task.cancelled() or task.exception() is not None:
                self._answers.pop(key, None)

        task.add_done_callback(ended)

    async def begin(self, request: CollectionRequest, owner: str, client: str, key: str | None) -> Accepted:
        """Begin a collection. An earlier gateway may have begun it for the same key: then it is that one.

        Raises:
            TaskError: the service refuses it.
        """
        known, submission = f"{owner}:{client}", f"{owner}:{key or uuid.uuid4().hex}"
        accepted = await repeated(lambda: self._coordinator().submit.remote(request, known, submission))
        self._add(accepted.collection_id, owner, known, again=False)
        return accepted

    def _add(self, collection_id: str, owner: str, client: str, again: bool) -> Stream:
        source = Source(self._coordinator, collection_id, again)
        delivery = Delivery(source.take, source.release, self._config.gateway.most_held_groups)
        stream = Stream(collection_id, owner, client, source, delivery)
        self._streams[collection_id] = stream
        return stream

    async def find(self, collection_id: str, owner: str) -> Stream:
        """The stream of this collection. One that an earlier gateway began is taken over, and its groups that were not
        acknowledged are numbered anew.

        Raises:
            Missing: there is none that `owner` began.
        """
        stream = self._streams.get(collection_id)
        if stream is None:
            status = await answer(self._coordinator().status.remote())
            client = status["collections"].get(collection_id, {}).get("client", "")
            stream = self._streams.get(collection_id)  # another request may have taken it over meanwhile
            if stream is None and client.startswith(f"{owner}:"):
                stream = self._add(collection_id, owner, client, again=True)
        if stream is None or stream.owner != owner:
            raise Missing(
                f"There is no collection {collection_id!r}.",
                "It ended, nobody asked for it in gateway.idle_seconds, or another token began it.",
            )
        stream.heard = time.monotonic()
        return stream

    def has(self, collection_id: str) -> bool:
        """Whether the gateway holds this collection."""
        return collection_id in self._streams

    @contextlib.contextmanager
    def reading(self, stream: Stream) -> Iterator[None]:
        """Note that somebody reads the stream meanwhile."""
        stream.readers += 1
        try:
            yield
        finally:
            stream.readers -= 1
            stream.heard = time.monotonic()

    async def groups(
        self, stream: Stream, after: int, limit: int | None, wait: float, writer: Writer
    ) -> AsyncIterator[bytes]:
        """The bytes of the groups after that number as they come, and of the mark at the end.

        Args:
            limit: most groups; None: all.
            wait: seconds without a group until it ends.
        """
        number, end = after, End("open")
        with self.reading(stream):
            while limit is None or number - after < limit:
                try:
                    async with asyncio.timeout(wait):  # wait_for would not even look when there is no time
                        group = await stream.delivery.group(number + 1)
                except TimeoutError:
                    break
                except RolloutError as error:
                    end = End("failed", of_error(error))
                    break
                if group is None:
                    end = End("ended")
                    with contextlib.suppress(RolloutError):  # it is told again, or the client's end says it
                        await stream.source.tell()
                    break
                number += 1
                trajectories = await stream.source.read(group)
                data = await asyncio.to_thread(writer.group, number, trajectories)
                for place in range(0, len(data), _PIECE):
                    yield data[place : place + _PIECE]
            yield writer.end(end)

    async def cancel(self, stream: Stream) -> None:
        """End the collection. Returns when nothing of it reaches the policy any more."""
        self._streams.pop(stream.collection_id, None)
        stream.delivery.close(ServiceError("The collection was cancelled.", "Ask for it again."))
        await answer(self._coordinator().cancel.remote(stream.collection_id))

    async def heard(self, owner: str, client: str) -> None:
        """Note that the client is there. Its collections that an earlier gateway began go on as well."""
        streams = self._of(owner, client)
        for stream in streams:
            if not stream.delivery.is_over:
                stream.heard = time.monotonic()
        if not streams:
            await self._renew(f"{owner}:{client}")

    async def leave(self, owner: str, client: str) -> None:
        """End the client's collections."""
        await asyncio.gather(*(self.cancel(stream) for stream in self._of(owner, client)))

    def _of(self, owner: str, client: str) -> list[Stream]:
        return [stream for stream in self._streams.values() if stream.client == f"{owner}:{client}"]

    async def _watch(self) -> None:
        """Renew the leases of clients that are heard, and end the collections of those that are not."""
        idle = self._config.gateway.idle_seconds
        while True:
            await asyncio.sleep(min(renewal_seconds(self._config.service.lease_seconds), idle / 4))
            with contextlib.suppress(RolloutError):  # without the coordinator there is nothing to renew
                await self._look(time.monotonic() - idle)

    async def _look(self, oldest: float) -> None:
        silent = [each for each in self._streams.values() if not each.readers and each.heard < oldest]
        for stream in silent:
            del self._streams[stream.collection_id]
            if not stream.delivery.is_over:
                _log.warning(
                    "Collection %s is cancelled: its reader was silent for gateway.idle_seconds=%g.",
                    stream.collection_id,
                    self._config.gateway.idle_seconds,
                )
        renewals = [self._renew(client) for client in {stream.client for stream in self._streams.values()}]
        await asyncio.gather(*renewals, *(self.cancel(stream) for stream in silent))

    async def _renew(self, client: str) -> None:
        await answer(self._coordinator().renew.remote(client))
