"""RolloutClient through a gateway behaves as within the cluster, also where the network does not."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest

from rollout_service import RolloutClient
from rollout_service.audit.verify import verify
from rollout_service.errors import ConfigError, ServiceError, TaskError, WeightError
from tests.support.episodes import settings
from tests.support.gateway import TOKENS, self_signed, serving


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def url(client):
    with serving(client) as found:
        yield found


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("GATEWAY_TOKEN", TOKENS["all"])


def connected(url: str, **more) -> RolloutClient:
    return RolloutClient(url, config=settings(service__name="shared"), token_var="GATEWAY_TOKEN", **more)


def test_over_https_a_client_does_what_it_does_within_the_cluster(client, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with serving(client, tls=certificate) as url, connected(url) as remote:
        batch = remote.collect(8, group_size=2, seed=3, progress=False)
        assert [str(v) for _, found in verify(batch) for v in found] == []
        assert Counter(Counter(t.group_id for t in batch).values()) == {2: 4}

        def essence(found):
            return sorted((t.task, t.seed, t.segments[0].token_ids.tobytes(), t.reward) for t in found)

        asked = {"trials": 2, "tasks": 2, "progress": False}
        near, far = client.evaluate(**asked).to_dict(), remote.evaluate(**asked).to_dict()
        assert near | {"timing": None} == far | {"timing": None}
        assert essence(batch) == essence(client.collect(8, group_size=2, seed=3, progress=False))
        assert remote.status().keys() == client.status().keys()
        near, far = client.metrics(), remote.metrics()
        assert near.keys() == far.keys()
        assert {k: v for k, v in near.items() if "total" in k} == {k: v for k, v in far.items() if "total" in k}
        assert remote.weight_version() == client.weight_version()
        assert remote.replicas() == client.replicas()
        assert remote.config.tasks == client.config.tasks
        remote.pause("drain")
        assert client.replicas()[0].paused
        remote.resume()
        assert not client.replicas()[0].paused


def test_errors_are_the_service_s_own(client, url):
    with connected(url) as remote:
        for arguments in ({"domain": "retial"}, {"n": 7, "group_size": 2}, {"ids": ["nope"]}):
            with pytest.raises(TaskError) as near:
                client.collect(**arguments)
            with pytest.raises(TaskError) as far:
                remote.collect(**arguments)
            assert str(far.value) == str(near.value)
        assert remote.update_weights("/ckpt/step_40").version == client.weight_version()
        with pytest.raises(WeightError) as near:
            client.update_weights("/ckpt/step_40", version=0)
        with pytest.raises(WeightError) as far:
            remote.update_weights("/ckpt/step_40", version=0)
        assert str(far.value) == str(near.value)
        with pytest.raises(WeightError, match="Tensors do not go through a gateway"):
            remote.update_weights({"a": np.zeros(3)})
        with pytest.raises(WeightError, match="process group does not go through a gateway"):
            remote.weight_group("gloo")


async def test_the_async_twins_work_and_closing_ends_what_is_left(client, url):
    remote = await RolloutClient.astart(url, config=settings(service__name="shared"), token_var="GATEWAY_TOKEN")
    assert len(await remote.acollect(4, group_size=2)) == 4
    stream = remote.astream(30)
    first = await anext(stream)
    assert len(first) == 1
    mine = stream.collection_id
    assert mine in client.status()["collections"]
    await remote.aclose()
    while mine in client.status()["collections"]:  # a busy service may end it after the client stopped waiting
        time.sleep(0.05)  # noqa: ASYNC251
    with pytest.raises(ServiceError, match="client is closed"):
        await remote.acollect(1)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


class CuttingProxy:
    """Passes bytes between clients and a server, and cuts so many connections after some bytes of an answer."""

    def __init__(self, port: int, cuts: int) -> None:
        self.port, self.left = port, cuts
        self.random = random.Random(1)
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.port))
                except OSError:
                    near.close()
                    continue
                threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if is_answer and self.left > 0 and self.random.random() < 0.3:
                    self.left -= 1
                    sink.sendall(data[: self.random.randrange(len(data))])
                    break
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def test_a_client_whose_connection_is_cut_50_times_gets_each_trajectory_once(client, url, monkeypatch):
    monkeypatch.setattr("rollout_service.gateway.link._PAUSES", (0.001, 0.01))
    with CuttingProxy(port_of(url), cuts=0) as proxy, connected(proxy.url) as remote:
        proxy.left = 50  # the first call is not sent again: a wrong address must be told at once
        came = [t for group in remote.stream(60, group_size=2, seed=5) for t in group]
        while proxy.left:
            remote.status()
    assert len({t.trajectory_id for t in came}) == len(came) == 60
    again = client.collect(60, group_size=2, seed=5, progress=False)
    assert sorted((t.seed, t.reward) for t in came) == sorted((t.seed, t.reward) for t in again)


def test_a_gateway_that_is_started_again_goes_on_with_the_collections_of_its_clients(client, monkeypatch):
    monkeypatch.setattr("rollout_service.gateway.link._PAUSES", (0.01, 0.1))
    with contextlib.ExitStack() as ends:
        with serving(client) as first:
            proxy = ends.enter_context(CuttingProxy(port_of(first), cuts=0))
            remote = ends.enter_context(connected(proxy.url))
            stream = remote.stream(12, group_size=2, seed=9)
            came = [next(stream), next(stream)]
        second = ends.enter_context(serving(client))
        proxy.port = port_of(second)
        came += stream
        assert httpx.get(f"{second}/v1/collections/{stream.collection_id}/groups").status_code == 401
        remote.close()  # while there is a gateway that hears of it
    ids = [trajectory.trajectory_id for group in came for trajectory in group]
    assert len(ids) == len(set(ids)) == 12


def test_what_cannot_be_reached_is_told_at_once(url, monkeypatch, tmp_path, certificate):
    with pytest.raises(ServiceError, match=r"gateway at http://127\.0\.0\.1:9/shared gave no answer"):
        connected("http://127.0.0.1:9")
    monkeypatch.setenv("GATEWAY_TOKEN", TOKENS["all"][:-3])
    with pytest.raises(ServiceError, match="The token is not whole"):
        connected(url)
    monkeypatch.setenv("GATEWAY_TOKEN", TOKENS["weights"])
    with pytest.raises(ServiceError, match="The token of weights allows weights, and this needs read"):
        connected(url)
    with pytest.raises(ServiceError, match=r"wants a token\. Name the environment variable .* --token-var"):
        RolloutClient(url, config=settings(service__name="shared"))
    monkeypatch.delenv("GATEWAY_TOKEN")
    with pytest.raises(ConfigError, match="token_var: the environment variable GATEWAY_TOKEN is not set"):
        connected(url)


def test_a_certificate_that_nobody_vouches_for_is_refused(client, certificate):
    with (
        serving(client, tls=certificate) as url,
        pytest.raises(ServiceError, match=r"certificate of .* is not trusted.*SSL_CERT_FILE"),
    ):
        connected(url)


@pytest.mark.parametrize(
    ("address", "more", "message"),
    [
        ("auto", {"token_var": "X"}, "token_var is set, but address is not that of a gateway"),
        (None, {"token_var": "X"}, "token_var is set, but address is not that of a gateway"),
        ("https://host:1", {"start": True}, "no service is started through a gateway"),
        ("https://host:1", {"token_var": ""}, "token_var is ''"),
        ("https://me:secret@host:1", {}, "address is not that of a gateway. Write https://host:port"),
        ("https://host:x", {}, "address is not that of a gateway"),
        ("https://", {}, "address is not that of a gateway"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_sent(address, more, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RolloutClient(address, **more)
    assert "secret" not in str(caught.value)
