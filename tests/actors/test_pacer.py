"""The pacer as a real actor, and gates as environment actors have them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayActorError

from actors import pacer
from actors.pacer import Pacer, PacerHandle
from rollout_service.cluster import pacer_name
from rollout_service.config import RolloutConfig
from rollout_service.pacing.controller import Result
from rollout_service.pacing.endpoints import Side
from rollout_service.pacing.gate import Gate
from rollout_service.pacing.shares import SILENCE_SECONDS, Report
from rollout_service.tau2.deadline import Deadline
from tests.support.episodes import settings


@pytest.fixture
def config() -> RolloutConfig:
    models = {"user__model": "openai/some-model", "evaluation__judge__model": "openai/another-model"}
    return settings(service__name="paced", user__review={"share": 0.5, "model": "openai/a-third"}, **models)


@pytest.fixture
def actor(cluster: None, config: RolloutConfig) -> Iterator[PacerHandle]:
    service = config.service
    options = {"name": pacer_name(service.name), "namespace": service.namespace, "num_cpus": 0, "max_restarts": -1}
    handle = ray.remote(Pacer).options(**options).remote(config)
    ray.get(handle.status.remote())
    yield handle
    ray.kill(handle)


def ask(gate: Gate, times: int) -> None:
    for _ in range(times):
        with gate.place(Deadline(120.0)) as place:
            place.result = Result("answered", 0.01)


def wait_until_answered(actor: PacerHandle, side: Side, count: int) -> None:
    deadline = time.monotonic() + 120
    while ray.get(actor.status.remote())[side]["answered"] < count:
        assert time.monotonic() < deadline, "the reports did not come"
        time.sleep(0.05)


def test_episodes_go_on_without_the_pacer_and_with_the_one_that_ray_starts_again(actor, config):
    gates = [pacer.gates(config, name)["user"] for name in ("a", "b")]
    for gate in gates:
        ask(gate, 5)
    wait_until_answered(actor, "user", 10)
    ray.kill(actor, no_restart=False)
    for gate in gates:
        ask(gate, 20)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ask(gates[0], 1)
        try:
            if ray.get(actor.status.remote(), timeout=5)["user"]["answered"]:
                return
        except ray.exceptions.RayError:
            continue
    raise AssertionError("no report reached the new pacer")


async def test_the_status_tells_of_the_endpoints_of_user_judge_and_reviewer(actor, config):
    deadline = time.monotonic() + 120
    while None in (told := await pacer.numbers(config)).values():  # a busy machine may take longer than it waits
        assert time.monotonic() < deadline, "the pacer does not answer"
    assert all(told[name]["limit"] >= 1 for name in ("user_endpoint", "judge_endpoint", "review_endpoint"))
    assert set((await pacer.numbers(settings())).values()) == {None}


def test_the_judge_s_requests_are_shared_apart_from_the_user_s(actor, config):
    ask(pacer.gates(config, "a")["judge"], 3)
    wait_until_answered(actor, "judge", 3)
    assert ray.get(actor.status.remote())["user"]["answered"] == 0


async def test_the_places_of_an_environment_actor_that_has_ended_are_the_others_at_once(actor, config):
    async def asks_for_all(name: str) -> int:
        return (await actor.report.remote("user", name, Report(0, 1000))).places

    assert await asks_for_all("ended") > 0
    assert await asks_for_all("other") == 0
    deadline = time.monotonic() + SILENCE_SECONDS / 2
    while not await asks_for_all("other"):  # a busy machine may take longer than `forget` waits
        assert time.monotonic() < deadline, "the pacer was not told"
        await pacer.forget(config, "ended")


def test_nobody_paces_a_scripted_user():
    assert pacer.gates(settings(), "a") == {}


async def test_a_pacer_that_answered_is_not_looked_for_again_before_it_is_gone(config, monkeypatch):
    class Handle:
        is_gone = False

        @property
        def status(self) -> SimpleNamespace:
            return SimpleNamespace(remote=self._status)

        async def _status(self) -> dict[Side, dict[str, int]]:
            if self.is_gone:
                raise RayActorError
            return {"user": {"limit": 4}}

    made: list[Handle] = []
    monkeypatch.setattr(pacer, "_known", {})
    monkeypatch.setattr("rollout_service.cluster.find", lambda *place: made.append(Handle()) or made[-1])
    for _ in range(3):
        assert await pacer.numbers(config) == {
            "user_endpoint": {"limit": 4},
            "judge_endpoint": None,
            "review_endpoint": None,
        }
    assert len(made) == 1
    made[0].is_gone = True
    assert set((await pacer.numbers(config)).values()) == {None}
    assert (await pacer.numbers(config))["user_endpoint"] == {"limit": 4}
    assert len(made) == 2
