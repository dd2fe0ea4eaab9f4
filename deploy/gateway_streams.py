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
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import rollout_service.logs as logs
from deploy.gateway_source import Source
from rollout_service.background import BackgroundTasks
from rollout_service.cluster import answer, repeated
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.collecting.group import Group
from rollout_service.collecting.lease import renewal_seconds
from rollout_service.collecting.request import Accepted, CollectionRequest
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, ServiceError
from rollout_service.gateway.delivery import Delivery, Missing, Taken
from rollout_service.gateway.wire import End, Writer, of_error

T = TypeVar("T")

_log = logs.logger(__name__)

_PIECE = 1 << 18
"""Most bytes of a group that are passed on at once: Serve's messages are bounded."""

_MOST_KEYS = 1000
"""Requests whose answers are kept for those who ask again."""


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
    is_kept: bool = True
    """Whether a collection that nobody reads waits for another reader, where the service has a journal."""
    beats: bool = False
    """Whether its client says that it is there, also while it reads nothing."""
    heard: float = field(default_factory=time.monotonic)
    readers: int = 0


class Streams:
    """The collections that the gateway began. Make and use it on one event loop."""

    def __init__(self, coordinator: CoordinatorHandle, config: RolloutConfig) -> None:
        self._coordinator = coordinator
        self._config = config
        self._idle = config.gateway.idle_seconds
        self._streams: dict[str, Stream] = {}
        self._answers: OrderedDict[tuple[str, str], tuple[Any, asyncio.Task[Any]]] = OrderedDict()
        self._tasks = BackgroundTasks()
        self._tasks.start(self._watch(), "watching the clients of the gateway")

    async def once(self, owner: str, key: str | None, asked: Any, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which goes on if its caller does not wait; of the same key it is done once.

        Args:
            asked: what the request asks for, in values that can be compared.

        Raises:
            RolloutError: the key came with a request for something else.
        """
        before, found = (None, None) if key is None else self._answers.get((owner, key), (None, None))
        if found is None:
            found = asyncio.ensure_future(work)
            if key is not None:
                self._keep((owner, key), asked, found)
        else:
            work.close()
            if before != asked:
                raise RolloutError("This idempotency-key came with another request.", "Use a new key for a new one.")
        result: T = await asyncio.shield(found)
        return result

    def _keep(self, key: tuple[str, str], asked: Any, task: asyncio.Task[Any]) -> None:
        """Keep the answer for those who ask again. What failed is done anew."""
        self._answers[key] = asked, task
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
        accepted = await repeated(lambda: self._coordinator.submit.remote(request, known, submission))
        self._add(accepted.collection_id, owner, known)
        return accepted

    def _add(self, collection_id: str, owner: str, client: str) -> Stream:
        source = Source(self._coordinator, collection_id, client)
        delivery = Delivery(source.take, source.release, self._config.gateway.most_held_groups)
        stream = Stream(collection_id, owner, client, source, delivery)
        self._streams[collection_id] = stream
        return stream

    async def find(self, collection_id: str, owner: str, client: str | None = None) -> Stream:
        """The stream of this collection. One that an earlier gateway began is taken over, and its groups that were not
        acknowledged are numbered anew.

        Args:
            client: id of the client that asks; None: it does not say.

        Raises:
            Missing: there is none that `owner` began, or another client has taken it over.
        """
        stream = self._streams.get(collection_id)
        if stream is None:
            known = await self._client_of(collection_id, owner)
            stream = self._streams.get(collection_id)  # another request may have taken it over meanwhile
            if stream is None and known is not None:
                stream = self._add(collection_id, owner, known)
        if stream is None or stream.owner != owner:
            raise _missing(collection_id)
        if client is not None and stream.client != f"{owner}:{client}":
            raise Missing(f"Collection {collection_id} is read by another client now.", "Have one reader at a time.")
        stream.heard = time.monotonic()
        return stream

    async def _client_of(self, collection_id: str, owner: str) -> str | None:
        """The client that reads the collection, as the coordinator knows it; None: `owner` began none of this id."""
        status = await answer(self._coordinator.status.remote())
        client: str = status["collections"].get(collection_id, {}).get("client", "")
        return client if client.startswith(f"{owner}:") else None

    async def reopen(self, collection_id: str, owner: str, client: str, judges: bool | None = None) -> Accepted:
        """Have this client read a collection, as soon as no other one does. Its groups that were not acknowledged come,
        and are numbered anew.

        Args:
            judges: as for `Coordinator.reopen`.

        Raises:
            Missing: there is none that `owner` began.
            Taken: another client reads it.
            TaskError: as `Coordinator.reopen` raises it.
        """
        known, former = f"{owner}:{client}", self._streams.get(collection_id)
        if former is None and await self._client_of(collection_id, owner) is None:
            raise _missing(collection_id)
        silent = None
        if former is not None:
            if former.owner != owner:
                raise _missing(collection_id)
            if former.client != known:
                await self._until_silent(former)
            with contextlib.suppress(ServiceError):  # another client read it since, within the cluster
                await former.source.tell()
            silent = former.client
        try:
            accepted = await repeated(lambda: self._coordinator.reopen.remote(collection_id, known, silent, judges))
        except ServiceError as error:
            if await self._client_of(collection_id, owner) is None:
                raise _missing(collection_id) from None
            raise Taken(error.problem, error.remedy) from None
        if (left := self._streams.get(collection_id)) is not None:
            left.delivery.close(Missing(f"Collection {collection_id} was opened again.", "Read it there."))
        self._add(collection_id, owner, known)
        return accepted

    async def _until_silent(self, stream: Stream) -> None:
        """Wait until the stream's client was silent for as long as a lease lasts.

        Raises:
            Taken: it is not.
        """
        lease = self._config.service.lease_seconds
        until = time.monotonic() + 1.5 * lease
        while stream.readers or time.monotonic() - stream.heard < lease:
            if time.monotonic() > until:
                reader = stream.client.partition(":")[2]
                raise Taken(
                    f"Collection {stream.collection_id} is read by client {reader}.", "Close that client first."
                )
            await asyncio.sleep(lease / 20)

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
                if stream.delivery.was_released(number + 1):
                    number += 1
                    continue
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
                data = await asyncio.to_thread(writer.group, number, trajectories, group.withheld, group.dropped)
                for place in range(0, len(data), _PIECE):
                    yield data[place : place + _PIECE]
            yield writer.end(end)

    async def drop(self, stream: Stream, numbers: list[int]) -> None:
        """Have others in the places of the groups of these numbers, which the reader does not keep. Once more changes
        nothing.

        Raises:
            CursorError: one of them was not given yet.
            ServiceError: the collection keeps every group.
        """
        groups = stream.delivery.held(numbers)
        await stream.source.drop(groups.values())
        stream.delivery.take_out(groups)

    async def cancel(self, stream: Stream) -> None:
        """End the collection. Returns when nothing of it reaches the policy any more."""
        self._streams.pop(stream.collection_id, None)
        stream.delivery.close(ServiceError("The collection was cancelled.", "Ask for it again."))
        await answer(self._coordinator.cancel.remote(stream.collection_id, stream.client))

    async def heard(self, owner: str, client: str) -> None:
        """Note that the client is there. Its collections that an earlier gateway began go on as well."""
        streams = self._of(owner, client)
        for stream in streams:
            stream.beats = True
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
        while True:
            await asyncio.sleep(min(renewal_seconds(self._config.service.lease_seconds), self._idle / 4))
            with contextlib.suppress(RolloutError):  # without the coordinator there is nothing to renew
                await self._look(time.monotonic())

    async def _look(self, now: float) -> None:
        silent = [
            each for each in self._streams.values() if not each.readers and now - each.heard > self._patience(each)
        ]
        for stream in silent:
            del self._streams[stream.collection_id]
        renewals = [self._renew(client) for client in {stream.client for stream in self._streams.values()}]
        await asyncio.gather(*renewals, *(self._let_go(stream) for stream in silent))

    def _patience(self, stream: Stream) -> float:
        """Seconds of silence after which a stream's reader counts as gone. Where nothing is lost by it, a client that
        says regularly that it is there counts as gone as soon as within the cluster."""
        is_quick = stream.beats and self._waits(stream)
        return min(self._idle, self._config.service.lease_seconds) if is_quick else self._idle

    def _waits(self, stream: Stream) -> bool:
        """Whether the collection waits for a reader when its own one is gone."""
        return stream.is_kept and self._config.service.journal is not None

    async def _let_go(self, stream: Stream) -> None:
        """Take that nobody reads the stream any more."""
        if stream.delivery.is_over or not self._waits(stream):
            if not stream.delivery.is_over:
                text = "Collection %s is cancelled: its reader was silent for gateway.idle_seconds=%g."
                _log.warning(text, stream.collection_id, self._idle)
            await self.cancel(stream)
            return
        _log.warning("Collection %s waits for a reader: its own one is silent.", stream.collection_id)
        stream.delivery.close(_missing(stream.collection_id))
        await stream.source.tell()

    async def _renew(self, client: str) -> None:
        await answer(self._coordinator.renew.remote(client))


def _missing(collection_id: str) -> Missing:
    return Missing(
        f"There is no collection {collection_id!r}.",
        "It ended, nobody asked for it in gateway.idle_seconds, or another token began it.",
    )
