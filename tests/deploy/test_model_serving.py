"""The service with a model on a laptop: the transformers engine, HTTP outside, and what can go wrong at its start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest
import ray
from ray import serve

import rollout_service.cluster as cluster
from deploy import policy as application
from deploy import serve_http
from deploy.grafana.dashboard import queries
from rollout_service import RolloutClient, RolloutConfig
from rollout_service.audit.verify import verify
from rollout_service.cluster import SERVE_CONTROLLER_ENVIRONMENT
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, EpisodeFault, FaultKind, ServiceError, WeightError, boundary
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.policy.serve import ServePolicy
from rollout_service.policy.sglang_http import SglangHttpPolicy
from tests.support import openai_server, tiny_model
from tests.support.episodes import settings
from tests.support.prometheus import BINARY, needed, scraping
from tests.support.reference import Reference, error, pure_error
from tests.support.services import HTTP_PORT, start

IDS = ["create_task_1", "update_task_1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_model.make(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def service(cluster, model):
    """A service with two replicas, and SGLang's HTTP API before them."""
    user = openai_server.OpenAIServer(openai_server.talker(3))
    with (
        user,
        start(
            "laptop",
            policy__engine="transformers",
            policy__model=model,
            policy__replicas=2,
            policy__http_port=HTTP_PORT,
            policy__sampling={"max_new_tokens": 30},
            tasks__ids=IDS,
            user__model="openai/talker",
            user__base_url=user.base_url,
        ) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def prometheus(cluster, tmp_path_factory):
    """It scrapes from the first test on, so that the last one need not wait."""
    with scraping(tmp_path_factory.mktemp("prometheus")) as query:
        yield query


@pytest.fixture(scope="module", autouse=BINARY is not None)
def _scraped(request):
    request.getfixturevalue("prometheus")


@pytest.fixture
def url(service) -> str:
    return f"http://127.0.0.1:{service.config.policy.http_port}"


def test_episodes_with_the_transformers_engine_are_exact_before_and_after_an_update(service, model, tmp_path):
    other = str(tiny_model.make(tmp_path / "other", seed=5))
    before = service.collect(6, progress=False)
    first = service.weight_version()
    second = service.update_weights(other).version
    after = service.collect(6, progress=False)
    full = [state.occupancy for state in service.replicas()]
    assert [each.waiting for each in full] == [0, 0]
    assert [each.kv_use for each in full] == [0, 0], "nothing runs, and what is cached can go"
    assert 0 < max(each.cache_hits for each in full) < 1
    service.update_weights(model)
    served = {first: Reference(model), second: Reference(other)}
    assert [str(v) for _, found in verify([*before, *after]) for v in found] == []
    assert max(error(t.segments[0], served) for t in before) < 1e-4
    assert max(error(t.segments[0], served) for t in after) < 1e-4
    assert {t.weight_version_range for t in before} == {(first, first)}
    assert {t.weight_version_range for t in after} == {(second, second)}
    assert all(turn.cached_tokens for t in after for turn in t.turns[1:])
    assert before.trajectories[0].provenance.model == model


async def test_any_sglang_client_can_use_the_replicas_over_http(service, url, model):
    policy = SglangHttpPolicy(url)
    prompt = np.arange(200, 300, dtype=np.int32)
    first = await policy.generate(prompt, Sampling(max_new_tokens=10, ignore_eos=True), "a", TurnInfo())
    longer = np.concatenate([prompt, first.token_ids])
    second = await policy.generate(longer, Sampling(max_new_tokens=10, ignore_eos=True), "a", TurnInfo())
    await policy.aclose()
    assert second.cached_tokens >= len(longer) - 1, "the session header keeps a client on its replica"
    expected = Reference(model).logprobs(np.concatenate([longer, second.token_ids]))[len(longer) :]
    assert np.abs(second.logprobs - expected).max() < 1e-4


def until_turns_run(service: RolloutClient, count: int) -> None:
    """Wait until so many turns are being sampled."""
    deadline = time.monotonic() + 120
    while sum(state.running for state in service.replicas()) < count:
        assert time.monotonic() < deadline, "the turns do not begin"
        time.sleep(0.01)


def test_every_trajectory_is_of_the_weights_that_it_names_whatever_is_updated_in_place(service, model, tmp_path):
    folders = [model, str(tiny_model.make(tmp_path / "other", seed=3))]
    start = service.update_weights(model).version
    served = {start + i: Reference(folders[i % 2]) for i in range(4)}
    trajectories = []
    for version in list(served)[1:]:
        with contextlib.closing(service.stream(12)) as stream:
            stream.open()
            until_turns_run(service, 2)
            service.update_weights(folders[(version - start) % 2], version=version, mode="in_place")
            trajectories += [group[0] for group in stream]
        later = service.collect(8, progress=False)
        assert {turn.prefix_version for t in later for turn in t.turns} == {version}
        assert {t.weight_version_range for t in later} == {(version, version)}
        assert max(error(t.segments[0], served) for t in later) < 1e-4
        assert sum(t.turns[0].cached_tokens > 0 for t in later) >= 4, "the system prompt of their version is shared"
    service.update_weights(model)
    assert [str(v) for _, found in verify(trajectories) for v in found] == []
    assert max(pure_error(t.segments[0], served) for t in trajectories) < 1e-4
    assert all(t.oldest_version == t.turns[0].prefix_version for t in trajectories)
    went_on = [t for t in trajectories if t.oldest_version < t.weight_version_range[1]]
    assert went_on, "no update came in the middle of an episode"
    assert all(turn.prefix_version == t.oldest_version for t in went_on for turn in t.turns)


def kill_a_replica() -> None:
    replicas = (p for p in psutil.process_iter(["cmdline"]) if "ServeReplica:laptop" in _command(p))
    next(replicas).kill()


class KillsAReplica(dict[str, Any]):
    """Weights; while they are sent a replica is killed."""

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        for number, tensor in enumerate(super().values()):
            if number == 3:
                kill_a_replica()
            yield tensor


def _command(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


def until_there_are_replicas(service: RolloutClient, count: int, version: int) -> None:
    def versions() -> list[int]:
        try:
            return [state.version for state in service.replicas()]
        except ServiceError:  # none is left
            return []

    deadline = time.monotonic() + 240
    while versions() != [version] * count:
        assert time.monotonic() < deadline, "the replicas were not replaced"
        time.sleep(0.1)


def test_a_replica_that_dies_in_an_update_through_a_group_is_an_error_and_its_successor_has_every_part_sent_before(
    service, model, tmp_path
):
    other, tensors = Reference(str(tiny_model.make(tmp_path / "other", seed=7))).state(), Reference(model).state()
    attention = {name: tensor for name, tensor in other.items() if "q_proj" in name or "k_proj" in name}
    rest = {name: tensor for name, tensor in other.items() if "mlp" in name}
    service.update_weights(model)
    service.update_weights(attention)
    version = service.update_weights(rest).version
    before = service.collect(6, progress=False)
    names = "|".join(state.replica for state in service.replicas())
    with service.weight_group("gloo", timeout_seconds=60) as group, contextlib.closing(service.stream(12)) as stream:
        stream.open()
        until_turns_run(service, 2)
        with pytest.raises(WeightError, match=rf"({names}).* died"):
            service.update_weights(KillsAReplica(tensors), group=group)
        meanwhile = [members[0] for members in stream]
        with pytest.raises(WeightError, match="is closed"):
            service.update_weights(tensors, group=group)
    assert service.weight_version() == version, "no replica has them"
    assert [t.fault for t in meanwhile] == [None] * 12, "no episode is lost"
    until_there_are_replicas(service, 2, version)
    after = service.collect(6, progress=False)
    with service.weight_group("gloo", timeout_seconds=200) as group:
        assert service.update_weights(tensors, group=group).lost == []
    expected = {version: Reference(model, attention | rest)}
    assert max(error(t.segments[0], expected) for t in before) < 1e-4
    assert max(error(t.segments[0], expected) for t in after) < 1e-4
    assert {t.weight_version_range for t in after} == {(version, version)}


@ray.remote(num_cpus=0, max_retries=0)
def trainer_that_dies(tensors: dict[str, Any], version: int) -> None:
    """Attaches to the service as a trainer, and ends in the middle of an update."""
    config = RolloutConfig.load(overrides={"service.name": "laptop"}, environ={})
    client = RolloutClient("auto", config=config, start=False)
    group = client.weight_group("gloo", timeout_seconds=200)

    class EndsTheTrainer(dict[str, Any]):
        def values(self) -> Iterator[Any]:  # type: ignore[override]
            for number, tensor in enumerate(super().values()):
                if number == 12:
                    os._exit(1)
                yield tensor

    client.update_weights(EndsTheTrainer(tensors), version=version, group=group)


def test_a_trainer_that_dies_in_an_update_leaves_the_old_weights_in_service_and_costs_no_replica_and_no_episode(
    service, model, tmp_path
):
    other = Reference(str(tiny_model.make(tmp_path / "other", seed=8))).state()
    version = service.update_weights(model).version
    replicas = {state.replica for state in service.replicas()}
    with contextlib.closing(service.stream(12)) as stream:
        stream.open()
        until_turns_run(service, 2)
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(trainer_that_dies.remote(other, version + 1))
        trajectories = [group[0] for group in stream]
    assert len(trajectories) == 12
    assert max(error(t.segments[0], {version: Reference(model)}) for t in trajectories) < 1e-4
    assert {state.replica for state in service.replicas()} == replicas
    updated = service.update_weights(other)  # refused for as long as another one is under way
    assert (updated.version, updated.lost) == (version + 1, [])


async def until_running(service: RolloutClient, turns: int) -> None:
    for _ in range(400):
        if sum(state.running for state in await service.areplicas()) == turns:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"there were never {turns} turns running")


async def test_cancelling_a_turn_ends_it_in_the_replica(service):
    policy = ServePolicy("laptop-policy")
    endless = Sampling(max_new_tokens=60000, ignore_eos=True)
    turn = asyncio.ensure_future(policy.generate(np.arange(200, 300, dtype=np.int32), endless, "c", TurnInfo()))
    await until_running(service, 1)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    await until_running(service, 0)


async def test_http_answers_have_sglangs_form_and_refusals_name_the_field(service, url):
    async with aiohttp.ClientSession() as session:

        async def post(**body):
            async with session.post(f"{url}/generate", json=body) as response:
                return response.status, await response.json()

        status, answer = await post(input_ids=[5, 6, 7], sampling_params={"max_new_tokens": 3, "ignore_eos": True})
        assert status == 200
        assert len(answer["output_ids"]) == len(answer["meta_info"]["output_token_logprobs"]) == 3
        assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
        status, answers = await post(input_ids=[[5, 6], [7, 8, 9]], sampling_params={"max_new_tokens": 2})
        assert (status, [a["meta_info"]["prompt_tokens"] for a in answers]) == (200, [2, 3])
        for body, field in (({"text": "hi"}, "input_ids"), ({"input_ids": [1], "stream": True}, "stream")):
            status, answer = await post(**body)
            assert status == 400
            assert field in answer["error"]["message"]
        async with session.get(f"{url}/health") as response:
            assert response.status == 200
        async with session.get(f"{url}/model_info") as response:
            assert (await response.json())["weight_version"] == str(service.weight_version())


def test_a_stop_token_that_the_model_has_not_is_refused_before_anything_is_sampled_or_started(service, model):
    unknown = r"policy.sampling.stop_token_ids has 99999; the model's ids are 0 to 4095"
    with pytest.raises(ConfigError, match=unknown):
        service.collect(2, sampling={"stop_token_ids": [99999]}, progress=False)
    with pytest.raises(ConfigError, match=unknown):
        start(
            "unknown-stop",
            policy__engine="transformers",
            policy__model=model,
            policy__sampling={"stop_token_ids": [99999]},
        )


async def test_a_turn_that_the_engine_refuses_is_a_fault_that_no_other_attempt_mends(service):
    policy = ServePolicy("laptop-policy", retry_seconds=60)
    with pytest.raises(EpisodeFault) as raised, boundary(FaultKind.POLICY):
        await policy.generate(np.array([5, 4096], dtype=np.int32), Sampling(), "r", TurnInfo())
    fault = raised.value.fault
    assert (fault.kind, fault.error, fault.retryable) == ("policy", "RequestError", False)
    assert fault.message == "input_ids has 4096; the model's ids are 0 to 4095"


def test_http_at_another_address_than_serve_has_is_refused(service):
    port = service.config.policy.http_port
    with pytest.raises(ServiceError, match=rf"at 127.0.0.1:1, but Serve runs .* already, at 127.0.0.1:{port}"):
        start("elsewhere", policy__http_port=1)


def test_serve_that_another_client_started_at_the_same_moment_is_used(
    service: RolloutClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, calls = serve.start, []

    def late(**options: Any) -> None:
        """The first call looks for Serve before it is there, and starts it when it is."""
        calls.append(options)
        if len(calls) == 1:
            ray.remote(Counter).options(name="SERVE_CONTROLLER_ACTOR", namespace="serve").remote()
        begin(**options)

    monkeypatch.setattr(serve, "start", late)
    serve_http.start(service.config)
    assert len(calls) == 2


def test_a_serve_that_this_service_starts_on_a_foreign_cluster_kills_replicas_that_hang(service, monkeypatch):
    (name,) = SERVE_CONTROLLER_ENVIRONMENT
    started = []
    monkeypatch.setattr(serve, "start", lambda **options: started.append(options))
    monkeypatch.delenv(name, raising=False)
    serve_http.start(service.config)
    monkeypatch.setenv(name, "0")
    serve_http.start(service.config)
    assert [options["controller_options"]["runtime_env"]["env_vars"][name] for options in started] == ["1", "0"]
    monkeypatch.setattr(cluster, "started_here", lambda: True)
    serve_http.start(service.config)
    assert "controller_options" not in started[-1], "the controller has it from this process"


def halting(log: str) -> type:
    """Replicas of which the first that gets a turn halts for good, as one does whose GPU hangs."""

    class Halting:
        async def generate(self, input_ids, sampling, info) -> Generation:
            with open(log, "a") as file:  # noqa: ASYNC230 - it must be there before the process halts
                file.write("asked\n")
            with contextlib.suppress(FileExistsError):
                os.close(os.open(f"{log}.halted", os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGSTOP)
            return Generation(np.array([1], np.int32), np.zeros(1, np.float32), np.zeros(1, np.int32), "stop")

    return Halting


async def test_turns_of_a_replica_that_hangs_are_sent_again_as_soon_as_serve_gives_it_up(cluster, tmp_path):
    log = tmp_path / "asked"
    options = {"graceful_shutdown_timeout_s": 900.0, "health_check_period_s": 0.2, "health_check_timeout_s": 0.5}
    options |= {"ray_actor_options": {"num_cpus": 0}}
    deployment = serve.deployment(name="policy", num_replicas=2, **options)(halting(str(log)))
    serve.run(deployment.bind(), name="halting", route_prefix=None)
    try:
        policy = ServePolicy("halting", retry_seconds=120)
        turn = policy.generate(np.array([5], np.int32), Sampling(), "session", TurnInfo())
        assert (await asyncio.wait_for(turn, 100)).token_ids.tolist() == [1]
    finally:
        serve.delete("halting")
    assert log.read_text().split() == ["asked", "asked"]


def fatal(log: str) -> type:
    """Replicas that end, with all their turns, when they are given the token 666; they write down what they get."""

    class Fatal:
        async def generate(self, input_ids, sampling, info) -> Generation:
            with open(log, "a") as file:  # noqa: ASYNC230 - it must be there when the process ends
                file.write(f"{input_ids[0]}\n")
            await asyncio.sleep(0.5)  # Serve itself sends a turn again whose replica dies before it said that it has it
            if 666 in input_ids:
                os._exit(1)
            return Generation(np.array([1], np.int32), np.zeros(1, np.float32), np.zeros(1, np.int32), "stop")

    return Fatal


async def test_a_turn_that_ends_its_replica_is_asked_of_three_and_the_turns_beside_it_come(cluster, tmp_path):
    log = tmp_path / "asked"
    # One more than the turn ends, so that nothing waits for Serve to replace any.
    options = {"max_ongoing_requests": 100, "graceful_shutdown_wait_loop_s": 0.1, "ray_actor_options": {"num_cpus": 0}}
    deployment = serve.deployment(name="policy", num_replicas=4, **options)(fatal(str(log)))
    serve.start(proxy_location="Disabled")
    serve.run(deployment.bind(), name="fatal", route_prefix=None)
    try:
        policy = ServePolicy("fatal", retry_seconds=120)
        turns = [
            policy.generate(np.array([ids], np.int32), Sampling(), f"s{ids}", TurnInfo())
            for ids in (666, 1, 2, 3, 4, 5)
        ]
        culprit, *others = await asyncio.gather(*turns, return_exceptions=True)
    finally:
        serve.delete("fatal")
    assert isinstance(culprit, EpisodeFault)
    assert culprit.fault.retryable is False
    assert "3 engines died while they had this turn" in culprit.fault.message
    assert [turn.token_ids.tolist() for turn in others] == [[1]] * 5
    assert log.read_text().split().count("666") == 3


def test_a_job_can_attach_to_a_serve_application_that_runs_already(service):
    if not service.weight_version():
        service.update_weights(service.config.policy.model)
    with start("attached", policy__application="laptop-policy", **_same_policy(service)) as client:
        assert len(client.collect(2, ids=IDS, progress=False)) == 2
        assert client.weight_version() == service.weight_version() > 0, "it goes on from what is served"
    assert serve.status().applications["laptop-policy"].status == "RUNNING", "who did not start it leaves it running"
    with pytest.raises(ServiceError, match=r"no running Serve application 'nowhere'.*serve run"):
        start("nowhere", policy__application="nowhere", **_same_policy(service))


def _same_policy(service: RolloutClient) -> dict:
    own = service.config
    return {
        "policy__engine": "transformers",
        "policy__model": own.policy.model,
        "policy__sampling": {"max_new_tokens": 30},
        "user__model": own.user.model,
        "user__base_url": own.user.base_url,
    }


def test_a_model_without_weights_ends_the_start_with_its_name(cluster, model, tmp_path, monkeypatch):
    options = application._options
    once = {"max_constructor_retry_count": 1}  # each further start of a replica takes seconds and fails alike
    monkeypatch.setattr(application, "_options", lambda policy: options(policy) | once)
    shutil.copytree(model, tmp_path / "hollow", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ServiceError, match="hollow"):
        start("hollow", policy__engine="transformers", policy__model=str(tmp_path / "hollow"))


def test_replicas_that_find_no_place_are_given_up_in_time_with_what_is_free(cluster, model):
    with pytest.raises(ServiceError, match=r"policy.start_seconds=1: .*0 GPUs.*asks for 3"):
        start(
            "no-gpu",
            policy__engine="transformers",
            policy__model=model,
            policy__gpus_per_replica=3,
            policy__start_seconds=1,
        )


@pytest.fixture(scope="module")
def scripted(cluster):
    """A service without a model, whose turns take a while. Its versions go on from test to test."""
    options = {"policy__script": {"latency": {"mean": 0.1}}, "policy__max_ongoing_requests": 4}
    with start("scripted", service__max_buffered_groups=8, **options) as client:
        yield client


def test_the_scripted_engine_takes_versions_and_marks_its_tokens_with_them(scripted):
    client, before = scripted, scripted.weight_version()
    after = before + 5
    stream = client.stream(32)  # more than its 16 slots and its buffer of 8: some begin only when others are taken
    next(stream)
    assert client.update_weights("/any/folder", version=after).version == client.weight_version() == after
    client.pause("drain")
    assert {state.paused for state in client.replicas()} == {True}
    client.resume()
    batch = [group[0] for group in stream]
    with pytest.raises(WeightError, match=f"not newer than {after}"):
        client.update_weights("/any/folder", version=after)
    with pytest.raises(WeightError, match=r"mode is 'later'.*drain"):
        client.update_weights("/any/folder", mode="later")
    with pytest.raises(WeightError, match="mode is 'later'"):
        client.pause("later")
    with pytest.raises(WeightError, match="empty"):
        client.update_weights({})
    with pytest.raises(WeightError, match="weights is a list"):
        client.update_weights([1.0])
    with pytest.raises(WeightError, match=r"version is 2147483648"):
        client.update_weights("/any/folder", version=2**31)
    with pytest.raises(WeightError, match=r"backend is 'mpi'"):
        client.weight_group("mpi")
    with pytest.raises(WeightError, match=r"timeout_seconds is inf"):
        client.weight_group("gloo", timeout_seconds=float("inf"))
    with pytest.raises(WeightError, match="scripted engine"):
        client.weight_group("gloo")
    assert [str(v) for _, found in verify(batch) for v in found] == []
    assert {v for t in batch for v in t.weight_version_range} == {before, after}


def wait_for_status(client: RolloutClient, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while not reached(status := client.status()):
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


@pytest.mark.parametrize(("late", "expected"), [("drop", {0}), ("deliver", {0, 1, 2})])
def test_trajectories_over_max_staleness_are_made_again_or_delivered_and_counted(scripted, late, expected):
    before = scripted.status()
    stream = scripted.stream(12, max_staleness=0, late=late, max_attempts=4)
    wait_for_status(scripted, lambda status: status["finished"] >= before["finished"] + 4)
    version = scripted.update_weights("/any/folder").version
    groups = list(stream)
    too_late = scripted.status()["late"] - before["late"]
    staleness = Counter(version - t.weight_version_range[0] for group in groups for t in group)
    assert len(groups) == 12
    assert set(staleness) <= expected
    assert too_late >= 4
    assert too_late == staleness[1] or late == "drop"


def test_an_update_ends_the_episodes_in_flight_that_can_no_longer_be_in_time_and_they_are_played_again(scripted):
    def turns() -> float:
        return scripted.metrics().get("turns_total/retail", 0.0)

    late, before = scripted.status()["late"], turns()
    stream = scripted.stream(8, domain="retail", split="base", ids=["2", "3", "4"], max_staleness=0, seed=0)
    updated = time.monotonic()

    def cuts(status: dict[str, Any]) -> bool:
        nonlocal updated
        is_time = time.monotonic() - updated > 0.3  # an update ends the turns that run: some must have ended before
        if is_time and status["late"] == late and status["collections"][stream.collection_id]["running"]:
            scripted.update_weights("/any/folder")
            updated = time.monotonic()
        return status["late"] > late  # nobody takes a group, so what is late was in flight

    wait_for_status(scripted, cuts)
    delivered = [group[0] for group in stream]
    version = scripted.weight_version()
    assert len({t.trajectory_id for t in delivered}) == 8
    assert {t.weight_version_range for t in delivered} == {(version, version)}
    assert {t.reward for t in delivered} == {1.0}
    played_out = sum((t.attempt - 1) * len(t.turns) for t in delivered)
    wasted = turns() - before - sum(len(t.turns) for t in delivered)
    assert 0 < wasted < played_out


def test_with_the_batch_of_an_update_known_no_group_is_started_that_would_come_too_late(scripted):
    before = scripted.status()
    first = before["weight_version"]
    stream = scripted.stream(18, groups_per_update=3, max_staleness=1)
    taken = []
    for update in range(1, 7):

        def holds_back(status: dict[str, Any], most: int = min(3 * (update + 1), 18)) -> bool:
            collection = status["collections"][stream.collection_id]
            return collection["done"] == most and not collection["running"]

        wait_for_status(scripted, holds_back)  # this version's batch and the next one's, and nothing more
        taken += [next(stream)[0] for _ in range(3)]
        scripted.update_weights("/any/folder", version=first + update)
    assert scripted.status()["late"] == before["late"]
    ages = [first + i // 3 - t.weight_version_range[0] for i, t in enumerate(taken)]
    assert set(ages) == {0, 1}, "the first batch is new, every later one was made while the one before was trained on"


def test_a_stream_that_stands_still_says_why_and_what_to_do(scripted):
    def until_it_says(collection_id: str, text: str) -> None:
        wait_for_status(scripted, lambda status: text in status["collections"][collection_id]["waits_for"])

    with contextlib.closing(scripted.stream(4, groups_per_update=1, max_staleness=0)) as stream:
        next(stream)  # all that the trainer announced to take before an update
        taken = f"Groups taken since weight version {scripted.weight_version()} came: 1; groups_per_update: 1."
        until_it_says(stream.collection_id, f"{taken} Call client.update_weights()")
        scripted.update_weights("/any/folder")
        assert next(stream)
    with contextlib.closing(scripted.stream(64)) as stream:
        until_it_says(stream.collection_id, "take them faster, or raise service.max_buffered_groups")
    stream = scripted.stream(8, keep=lambda group: False, most_groups=400)
    with ThreadPoolExecutor(1) as reader, contextlib.closing(stream):
        ended = reader.submit(list, stream)
        until_it_says(stream.collection_id, "a group that keep keeps: it kept 0 of ")
        stream.close()
    assert ended.result() == []


def test_serve_run_builds_the_application_from_a_file_and_dotted_settings(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("policy: {replicas: 3}\ntasks: {domain: mock}\n")
    built = application.app({"config": str(path), "policy.cpus_per_replica": "0.5"})
    deployment = built._bound_deployment
    assert (deployment.num_replicas, deployment.ray_actor_options["num_cpus"]) == (3, 0.5)
    scaled = application.app({"policy.autoscaling": "{max_replicas: 4, target_ongoing_requests: 10}"})._bound_deployment
    assert scaled._deployment_config.autoscaling_config.max_replicas == 4
    assert scaled._deployment_config.autoscaling_config.target_ongoing_requests == 10
    with pytest.raises(ConfigError, match=r"policy\.replcias"):
        application.app({"policy.replcias": "3"})
    with pytest.raises(ConfigError, match="its endpoint serves"):
        application.app(settings(policy__engine="http", policy__url="http://x", policy__tokenizer="y"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"policy__engine": "sglang"}, "policy.model is not set"),
        ({"policy__engine": "http", "policy__url": "http://x"}, "policy.tokenizer"),
        ({"policy__autoscaling": {"min_replicas": 3, "max_replicas": 2}}, "below min_replicas"),
        ({"policy__autoscaling": {}}, "max_replicas"),
    ],
)
def test_an_engine_without_what_it_serves_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        settings(**overrides)


@needed
def test_every_query_of_the_dashboard_gets_numbers_from_a_real_prometheus(service, prometheus, model):
    def missing() -> list[str]:
        service.collect(2, progress=False)
        return [f"{title}: {query}" for title, query in asked if not prometheus(query)]

    variables = {"$service_name": "laptop", "$SessionName": ".+", "$__rate_interval": "10m"}
    asked = []
    for title, query in queries():
        for name, value in variables.items():
            query = query.replace(name, value)
        asked.append((title, query))
    deadline = time.monotonic() + 120
    while left := missing():
        assert time.monotonic() < deadline, left
        time.sleep(1)
    names = [name for _, query in asked for name in re.findall(r"(ray_\w+){", query)]
    rare = {"faults", "late", "lost_actors", "retries", "cost_usd", "user_failures", "rewards_total", "versions_behind"}
    rare |= {"user_flaws", "users_examined"}
    there = {name for name in names if prometheus(name)}
    assert {name for name in names if not any(each in name for each in rare)} <= there
    done = sum(value for name, value in service.metrics().items() if name.startswith("episodes_total/"))
    assert 0 < sum(prometheus('ray_rollout_service_episodes_total{service_name="laptop"}')) <= done
