"""A collection behind the gateway whose reader is gone: another client gets what was not acknowledged, each group once.
A real coordinator with a journal, in this process, answers through the real routes."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

import deploy.gateway_api as gateway_api
import tests.actors.test_bookkeeping as bookkeeping
from deploy.gateway_api import api
from deploy.gateway_streams import Streams
from rollout_service.collecting.judging import Judge
from rollout_service.collecting.request import CollectionRequest
from rollout_service.collecting.stream import GroupStream
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError, TaskError
from rollout_service.gateway.guard import Guard
from rollout_service.gateway.link import Link
from rollout_service.gateway.remote import RemoteCoordinator
from tests.actors.test_bookkeeping import EPISODES, SIZE, Service, ids, is_odd, number_of, plays
from tests.support.gateway import KNOWN, TOKENS

service = bookkeeping.service  # its fixture

LEASE = 0.4


class Behind:
    """A gateway in front of a coordinator in this process, and clients of it."""

    def __init__(self, service: Service, streams: Streams, port: int) -> None:
        self.service, self.streams, self.url = service, streams, f"http://127.0.0.1:{port}"
        self.links: list[Link] = []

    def client(self, name: str, token: str = "all") -> RemoteCoordinator:
        self.links.append(Link(self.url, TOKENS[token], name))
        return RemoteCoordinator(self.links[-1])

    async def begun(self, name: str, ack: str = "manual", judge: Judge | None = None, **asked: Any) -> GroupStream:
        remote, request = self.client(name), CollectionRequest(n=EPISODES, group_size=SIZE, **asked)
        submit = functools.partial(remote.submit.remote, request, name, "submission")
        stream = GroupStream(remote, submit, ack, judge=judge)
        await stream.aopen()
        return stream

    async def reopened(
        self, collection_id: str, name: str, token: str = "all", judge: Judge | None = None
    ) -> GroupStream:
        remote = self.client(name, token)
        submit = functools.partial(remote.reopen.remote, collection_id, name, None, judge is not None)
        stream = GroupStream(remote, submit, judge=judge)
        await stream.aopen()
        return stream


@pytest.fixture
async def behind(service, monkeypatch) -> AsyncIterator[Behind]:
    streams: list[Streams] = []
    monkeypatch.setattr(gateway_api, "Streams", lambda *asked: streams.append(Streams(*asked)) or streams[0])
    loaded = RolloutConfig.load(overrides={"gateway": {"port": 0}}, environ={})
    short = service.config.service.model_copy(update={"lease_seconds": LEASE})
    config = service.config.model_copy(update={"gateway": loaded.gateway, "service": short})
    app: Any = api(bookkeeping.SimpleNamespace(coordinator=service, fleet=None), config, Guard(KNOWN))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        made = Behind(service, streams[0], listening.getsockname()[1])
        yield made
        for link in made.links:
            await asyncio.to_thread(link.close)
        server.should_exit = server.force_exit = True
        await serving


async def test_another_client_gets_what_was_not_acknowledged_each_group_once(behind):
    stream = await behind.begun("trainer")
    came = [await anext(stream) for _ in range(3)]
    await stream.aack(came[1])
    again = await behind.reopened(stream.collection_id, "second")
    assert again.episodes == EPISODES - SIZE
    groups = [group async for group in again]
    assert sorted(ids(groups)) == sorted(set(plays) - set(ids([came[1]])))
    assert set(plays.values()) == {1}, "nothing that was stored is played again"
    assert behind.service.coordinator._collections == {}, "the reader has everything"


@pytest.mark.parametrize("dies", [False, True])
async def test_a_filter_s_function_runs_in_the_client_behind_a_gateway(behind, dies):
    dropped: list[Any] = []
    judge = Judge(is_odd, dropped.append)
    stream = await behind.begun("trainer", "auto", judge, keep="reader")
    groups = []
    for turn in range(EPISODES // SIZE):
        groups.append(await anext(stream))
        if turn == 1 and dies:
            behind.service.die()
            await behind.service.live()
        if turn == 2:
            assert stream.dropped == len(dropped) > 0
            with pytest.raises(TaskError, match="Give it again: reopen"):
                await behind.reopened(stream.collection_id, "second")
            assert behind.service.coordinator._collections[stream.collection_id].client == "all:trainer"
            stream = await behind.reopened(stream.collection_id, "second", judge=judge)
    groups += [group async for group in stream]
    assert all(is_odd(group) for group in groups)
    assert not any(is_odd(group) for group in dropped)
    assert len(set(ids(groups))) == EPISODES, "what was not acknowledged came again"
    assert len(ids(dropped)) == len(set(ids(dropped)))
    assert behind.service.coordinator._collections == {}


async def test_what_a_gateway_does_not_hear_because_it_is_started_again_is_dropped_nevertheless(behind):
    judged, restarts = [], iter([behind.streams._streams.clear])

    def keep(group: Any) -> bool:
        judged.append(number_of(group[0]))
        if not is_odd(group):
            next(restarts, lambda: None)()
        return is_odd(group)

    stream = await behind.begun("trainer", "auto", Judge(keep), keep="reader")
    groups = [group async for group in stream]
    assert all(is_odd(group) for group in groups)
    assert len(ids(groups)) == len(set(ids(groups))) == EPISODES
    assert len(judged) == len(set(judged)), "nothing is judged twice"
    assert behind.service.coordinator._collections == {}


async def test_groups_that_a_service_drops_do_not_pass_the_gateway(behind, monkeypatch):
    monkeypatch.setattr(bookkeeping, "rewards", bookkeeping.rewards_that_differ_in_every_other_group)
    stream = await behind.begun("trainer", "auto", keep="informative")
    groups = [group async for group in stream]
    assert len(ids(groups)) == EPISODES
    assert all(is_odd(group) for group in groups)
    assert stream.dropped >= EPISODES // SIZE - 1


async def test_only_a_collection_whose_reader_decides_drops_groups(behind):
    stream = await behind.begun("trainer")
    await anext(stream)
    with pytest.raises(ServiceError, match="keeps every group"):
        await stream._drop(0)
    assert len([group async for group in stream]) == EPISODES // SIZE - 1


async def test_a_client_whose_collection_was_opened_by_another_reads_and_ends_it_no_more(behind):
    stream = await behind.begun("trainer")
    await anext(stream)
    again = await behind.reopened(stream.collection_id, "second")
    with pytest.raises(ServiceError, match="is read by another client now"):
        await anext(stream)
    await stream.aclose()
    assert len([group async for group in again]) == EPISODES // SIZE


async def test_a_collection_that_a_client_reads_is_not_given_to_another_nor_to_another_token(behind):
    stream = await behind.begun("trainer")
    read = await behind.streams.find(stream.collection_id, "all")
    with (
        behind.streams.reading(read),
        pytest.raises(ServiceError, match=r"is read by client trainer\. Close that client first"),
    ):
        await behind.reopened(stream.collection_id, "second")
    with pytest.raises(ServiceError, match="There is no collection"):
        await behind.reopened(stream.collection_id, "second", token="other")
    with pytest.raises(ServiceError, match="There is no collection 'none'"):
        await behind.reopened("none", "second")


async def test_a_collection_whose_reader_falls_silent_waits_and_is_listed_until_it_is_opened_again(behind, caplog):
    stream = await behind.begun("trainer")
    await anext(stream)
    await behind.client("trainer").renew.remote("trainer")
    with caplog.at_level(logging.WARNING):
        while "waits for a reader" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    behind.service.coordinator._client_is_gone("all:trainer", "the gateway renews its lease no more")
    status = await behind.client("second").status.remote()
    assert status["collections"][stream.collection_id]["parked"]
    again = await behind.reopened(stream.collection_id, "second")
    assert len([group async for group in again]) == EPISODES // SIZE
    assert set(plays.values()) == {1}
