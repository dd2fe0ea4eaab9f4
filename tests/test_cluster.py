"""Answers of remote calls, blocking and on a loop: in time, too late, or the actor's own error; and connecting."""

from __future__ import annotations

import asyncio
import os

import pytest
import ray

import rollout_service.cluster as cluster
import rollout_service.twins as twins
from rollout_service.errors import ServiceError


@pytest.fixture(params=["blocking", "loop"])
def wait(request, cluster):
    return twins.run if request.param == "blocking" else asyncio.run


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self) -> None:
        self._opened = asyncio.Event()

    async def open(self) -> None:
        self._opened.set()

    async def answer(self) -> str:
        await self._opened.wait()
        return "come"

    async def own_timeout(self) -> None:
        raise TimeoutError("the actor's own")


@pytest.fixture
def gate(cluster):
    return Gate.remote()


def test_an_answer_that_is_late_can_be_waited_for_again(wait, gate):
    reference = gate.answer.remote()
    with pytest.raises(cluster.NoAnswerYet):
        wait(cluster.answer(reference, seconds=0.01))
    gate.open.remote()
    assert wait(cluster.answer(reference, seconds=60.0)) == "come"
    assert wait(cluster.answer(reference)) == "come"


def test_a_timeout_that_the_actor_raises_is_its_error_and_no_late_answer(wait, gate):
    with pytest.raises(TimeoutError, match="the actor's own"):
        wait(cluster.answer(gate.own_timeout.remote(), seconds=60.0))


def test_an_actor_that_died_is_an_error_with_the_reason_that_ray_gives(wait, gate):
    with pytest.raises(TimeoutError):  # so it has started
        wait(cluster.answer(gate.own_timeout.remote(), seconds=60.0))
    ray.kill(gate)  # which takes a moment: nothing opens the gate, so no answer can come before
    reason = r"The service's coordinator is gone\. Ray says: .*killed by `ray\.kill`\. Start the service again"
    with pytest.raises(ServiceError, match=reason):
        wait(cluster.repeated(gate.answer.remote))


def test_objects_that_are_lost_are_marked_and_the_others_given_in_order(wait, gate):
    gate.open.remote()
    found = wait(cluster.fetched([gate.answer.remote(), gate.own_timeout.remote(), gate.answer.remote()]))
    assert [found[0], found[2]] == ["come", "come"]
    assert isinstance(found[1], cluster.LostObject)
    assert isinstance(found[1].error, TimeoutError)


def test_a_node_that_starts_too_slowly_is_a_clear_error(monkeypatch):
    def slow(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")  # as Ray does

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(ServiceError, match=r"Cannot start Ray on this machine: The current node timed out.*memory"):
        cluster.connect(None, "rollout_service")


def test_all_processes_of_a_ray_of_its_own_have_what_serve_s_controller_needs(gate, monkeypatch):
    (name,) = cluster.SERVE_CONTROLLER_ENVIRONMENT
    seen = []
    monkeypatch.setattr(cluster, "_own_rays", set())
    monkeypatch.setattr(ray, "init", lambda *_, **__: seen.append(os.environ.get(name)))
    monkeypatch.delenv(name, raising=False)
    cluster.connect("auto", "rollout_service")
    assert not cluster.started_here()
    cluster.connect(None, "rollout_service")
    assert cluster.started_here()
    monkeypatch.setenv(name, "0")
    cluster.connect(None, "rollout_service")
    assert seen == [None, "1", "0"], "a value that the user chose stays"


def test_a_process_that_leaves_a_cluster_does_not_ask_that_one_s_serve_again(monkeypatch):
    from ray.serve import context

    for name, value in (("_global_client", object()), ("_global_client_job_id", "01000000")):
        monkeypatch.setattr(context, name, value)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    cluster.disconnect()
    assert context._global_client is None
