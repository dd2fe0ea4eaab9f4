"""The gateway's streams in front of a coordinator in this process: who is held to be there, and what is kept."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

import deploy.gateway_source as gateway_source
from deploy.gateway_api import client_id
from deploy.gateway_evaluations import Evaluations
from deploy.gateway_streams import Streams
from rollout_service.cluster import Call, LostObject
from rollout_service.collecting.group import Group
from rollout_service.collecting.request import Accepted, CollectionRequest, EpisodeRequest
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, ServiceError
from rollout_service.gateway.wire import NdjsonWriter
from rollout_service.record.evaluation import Evaluation
from rollout_service.record.trajectory import TaskRef
from tests.support.trajectories import make_trajectory

CONFIG = RolloutConfig.load(overrides={"gateway": {"port": 0, "idle_seconds": 60.0}}, environ={})


class Coordinator:
    """Has collections of one group each."""

    def __init__(self) -> None:
        self.renewed: Counter[str] = Counter()
        self.given: set[str] = set()
        self.cancelled: list[str] = []
        self.cancels = asyncio.Event()
        self.cancels.set()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: started(getattr(self, f"on_{name}")(*arguments)))

    async def on_submit(self, request: CollectionRequest, client: str, submission: str) -> Accepted:
        return Accepted(submission.partition(":")[2], 1, 0)

    async def on_next_group(self, collection: str, acked: tuple[int, ...], again: bool, client: str) -> Group | None:
        if collection in self.given:
            return None
        self.given.add(collection)
        request = EpisodeRequest(f"{collection}-0", collection, collection, 0, TaskRef("mock", "base", "1", 0), 1)
        return Group([request], [Call.of(make_trajectory(**request.identity()))], 0)

    async def on_renew(self, client: str) -> None:
        self.renewed[client] += 1

    async def on_acknowledge(self, collection: str, numbers: tuple[int, ...], client: str) -> None: ...

    async def on_cancel(self, collection: str, client: str) -> None:
        await self.cancels.wait()
        self.cancelled.append(collection)

    async def on_status(self) -> dict[str, Any]:
        return {"collections": {}}


def started(work: Any) -> Any:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    task = asyncio.ensure_future(work)
    task.add_done_callback(
        lambda task: future.set_exception(error) if (error := task.exception()) else future.set_result(task.result())
    )
    return Call(future)


@pytest.fixture
async def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
async def streams(coordinator) -> Streams:
    return Streams(coordinator, CONFIG)


async def begun(streams: Streams, name: str, client: str = "client") -> Any:
    await streams.begin(CollectionRequest(n=1), "owner", client, name)
    return await streams.find(name, "owner")


async def read(streams: Streams, stream: Any, after: int = 0, wait: float = 60.0) -> list[bytes]:
    written = b"".join([piece async for piece in streams.groups(stream, after, None, wait, NdjsonWriter())])
    return written.splitlines()


async def test_a_reader_that_does_not_wait_gets_what_is_there(streams):
    stream = await begun(streams, "a")
    assert await read(streams, stream, wait=0.0) == [b'{"state":"open"}']
    await stream.delivery.group(1)
    assert len(await read(streams, stream, wait=0.0)) == 2


async def test_a_key_that_comes_with_another_request_is_refused_and_another_caller_s_is_its_own(streams):
    async def answer(number: int) -> int:
        return number

    assert await streams.once("owner", "key", {"n": 1}, answer(1)) == 1
    assert await streams.once("owner", "key", {"n": 1}, answer(2)) == 1
    with pytest.raises(RolloutError, match=r"came with another request\. Use a new key"):
        await streams.once("owner", "key", {"n": 2}, answer(3))
    assert await streams.once("other", "key", {"n": 2}, answer(4)) == 4


async def test_a_client_that_an_earlier_gateway_knew_keeps_its_lease_before_it_reads_again(streams, coordinator):
    await streams.heard("owner", "client")
    assert coordinator.renewed == {"owner:client": 1}


async def test_a_collection_that_is_over_is_forgotten_though_its_client_stays(streams, coordinator):
    stream = await begun(streams, "a")
    assert len(await read(streams, stream)) == 2
    for is_acknowledged in (False, True):
        if is_acknowledged:
            stream.delivery.acknowledge(1)
        stream.heard -= 100.0
        await streams.heard("owner", "client")
        await streams._look(time.monotonic())
        assert ("a" in streams._streams) is not is_acknowledged
    assert coordinator.cancelled == ["a"], "the service need not wait for an acknowledgement that was not told"


async def test_ends_that_take_long_keep_no_other_client_from_its_lease(streams, coordinator):
    for number in range(3):
        silent = await begun(streams, f"{number}", "gone")
    kept = await begun(streams, "kept", "there")
    coordinator.cancels.clear()
    kept.heard = silent.heard + 100.0
    looking = asyncio.ensure_future(streams._look(silent.heard + 61.0))
    async with asyncio.timeout(120):
        while coordinator.renewed["owner:there"] != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    coordinator.cancels.set()
    await looking
    assert sorted(coordinator.cancelled) == ["0", "1", "2"]


async def test_a_group_whose_objects_went_with_their_owner_is_asked_for_once_more(streams, coordinator, monkeypatch):
    stream = await begun(streams, "a")
    lost = iter([True])

    async def fetched(references: list[Any]) -> list[Any]:
        if next(lost, False):
            coordinator.given.clear()  # another one, which has the group in its journal
            return [LostObject(RuntimeError())] * len(references)
        return [await reference for reference in references]

    monkeypatch.setattr(gateway_source, "fetched", fetched)
    group, mark = map(json.loads, await read(streams, stream))
    assert mark == {"state": "ended"}
    assert [each["outcome"] for each in group["trajectories"]] == ["completed"]


async def test_a_group_whose_objects_are_lost_for_good_is_told_as_such(streams, monkeypatch):
    async def fetched(references: list[Any]) -> list[Any]:
        return [LostObject(RuntimeError())] * len(references)

    monkeypatch.setattr(gateway_source, "fetched", fetched)
    group, mark = map(json.loads, await read(streams, await begun(streams, "a")))
    assert mark == {"state": "ended"}
    assert [each["fault"]["retryable"] for each in group["trajectories"]] == [True]


async def test_an_evaluation_that_cannot_be_counted_has_failed(streams, monkeypatch):
    monkeypatch.setattr(Evaluation, "add", lambda self, group: 1 / 0)
    evaluations = Evaluations(streams)
    accepted = await evaluations.begin(CollectionRequest(n=1), "us", "client", None, {})
    report = await evaluations.report(accepted.collection_id, "us", 120.0)
    assert report["state"] == "failed"
    assert "division by zero" in report["error"]["problem"]


async def test_a_report_that_says_ended_has_the_numbers_of_every_group(streams, coordinator, monkeypatch):
    begun, over, goes_on, came = asyncio.Event(), threading.Event(), asyncio.Event(), asyncio.Event()
    loop, to_dict, fetched = asyncio.get_running_loop(), Evaluation.to_dict, gateway_source.fetched
    next_group = coordinator.on_next_group

    async def later(*arguments: Any) -> Group | None:
        await goes_on.wait()
        return await next_group(*arguments)

    async def noted(references: list[Any]) -> list[Any]:
        found = await fetched(references)
        came.set()  # whoever waits for this goes on when the reader cannot
        return found

    def slowly(self: Evaluation) -> dict[str, Any]:
        loop.call_soon_threadsafe(begun.set)
        assert over.wait(120.0)
        return to_dict(self)

    monkeypatch.setattr(coordinator, "on_next_group", later, raising=False)
    monkeypatch.setattr(gateway_source, "fetched", noted)
    monkeypatch.setattr(Evaluation, "to_dict", slowly)
    evaluations = Evaluations(streams)
    accepted = await evaluations.begin(CollectionRequest(n=1), "us", "client", None, {})
    early = asyncio.ensure_future(evaluations.report(accepted.collection_id, "us", 0.0))
    await begun.wait()
    goes_on.set()
    await came.wait()
    over.set()
    report = await early
    assert (report["state"], report["report"]["episodes"]) == ("open", 0)
    report = await evaluations.report(accepted.collection_id, "us", 120.0)
    assert (report["state"], report["report"]["episodes"]) == ("ended", 1)


async def test_an_evaluation_of_which_an_earlier_gateway_counted_a_part_has_failed(streams, coordinator):
    evaluations = Evaluations(streams)
    coordinator.given.add("a")
    accepted = await evaluations.begin(CollectionRequest(n=1), "us", "client", "a", {})
    report = await evaluations.report(accepted.collection_id, "us", 120.0)
    assert report["state"] == "failed"
    assert "An earlier gateway counted 1 of 1 episodes" in report["error"]["problem"]


async def test_a_collection_that_an_earlier_gateway_began_for_the_key_gives_all_that_was_not_acknowledged(coordinator):
    asked, next_group = [], coordinator.on_next_group

    async def noted(collection: str, acked: tuple[int, ...], again: bool, client: str) -> Group | None:
        asked.append(again)
        if again:
            coordinator.given.clear()
        return await next_group(collection, acked, again, client)

    coordinator.on_next_group = noted
    for _ in range(2):
        stream = await begun(Streams(coordinator, CONFIG), "a")
        assert await stream.delivery.group(1) is not None
    assert asked == [True, True]


def test_a_client_that_names_no_id_is_known_by_its_key_so_that_it_has_the_same_one_when_it_asks_again():
    assert (client_id("client", "key"), client_id(None, "key")) == ("client", "key")
    assert client_id(None, None) != client_id(None, None)


async def test_a_collection_that_a_client_within_the_cluster_read_meanwhile_can_be_opened_again(streams, coordinator):
    async def refused(*arguments: Any) -> None:
        raise ServiceError("Collection a is read by client x now.", "")

    async def reopened(collection: str, client: str, silent: str | None, judges: bool | None) -> Accepted:
        return Accepted(collection, 1, 0)

    coordinator.on_acknowledge, coordinator.on_reopen = refused, reopened
    former = await begun(streams, "a")
    await former.delivery.group(1)
    former.delivery.acknowledge(1)
    with pytest.raises(ServiceError, match="read by client x"):
        await former.source.tell()
    await streams.reopen("a", "owner", "client")
    assert await streams.find("a", "owner") is not former
