"""RolloutClient as a trainer uses it, on a real Ray cluster with real Serve and real τ²-bench."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import ray

import rollout_service.collecting.stream as streams
import rollout_service.logs as logs
import rollout_service.services as services
from rollout_service import IncompleteCollection, IncompleteEvaluation, RolloutClient, RolloutConfig
from rollout_service.audit.verify import verify
from rollout_service.errors import ConfigError, FaultKind, RolloutError, ServiceError, TaskError
from rollout_service.tau2 import tasks
from tests.support import openai_server
from tests.support.arguments import check, nothing, number, one_of, or_none, truth, whole
from tests.support.episodes import settings
from tests.support.services import start, wait_until


def violations(trajectories) -> list[str]:
    return [str(v) for _, found in verify(trajectories) for v in found]


def test_collect_returns_whole_groups_of_audited_trajectories(client):
    batch = client.collect(8, group_size=2, progress=False)
    assert len(batch) == 8
    assert Counter(Counter(t.group_id for t in batch).values()) == {2: 4}
    assert all(len({t.task for t in group}) == 1 for group in batch.groups().values())
    assert [t.sample_index for group in batch.groups().values() for t in group] == [0, 1] * 4
    assert len({t.trajectory_id for t in batch}) == len({t.seed for t in batch}) == 8
    assert violations(batch) == []


def test_without_n_every_task_is_collected_once_per_group_member(client):
    batch = client.collect(group_size=2, progress=False)
    assert set(Counter(t.task.task_id for t in batch).values()) == {2}
    assert len(batch) == 18


def test_stream_yields_groups_as_they_complete(client):
    stream = client.stream(6, group_size=3)
    assert stream.episodes == 6
    groups = list(stream)
    assert [len(group) for group in groups] == [3, 3]
    assert client.status()["collections"] == {}


def test_a_call_with_a_seed_can_be_repeated_exactly(client):
    first, again, other = (client.collect(6, seed=seed, progress=False) for seed in (5, 5, 6))

    def essence(batch):
        return sorted((t.task, t.seed, t.segments[0].token_ids.tobytes()) for t in batch)

    assert essence(first) == essence(again)
    assert essence(first) != essence(other)


def test_a_filter_s_function_decides_what_a_batch_holds(client):
    dropped: list[Any] = []

    def keep(group: list[Any]) -> bool:
        return group[0].seed % 2 == 0

    batch = client.collect(4, group_size=2, keep=keep, on_dropped=dropped.append, seed=5, progress=False)
    assert len(batch) == 4
    assert all(keep(group) for group in batch.groups().values())
    assert not any(keep(group) for group in dropped)
    assert client.status()["collections"] == {}


def test_a_filter_that_never_keeps_ends_at_its_limit(client):
    with pytest.raises(IncompleteCollection, match=r"kept no group of the 1 .* dropped 3: most_groups=3") as caught:
        client.collect(2, group_size=2, keep="informative", most_groups=3, seed=5, progress=False)
    assert (len(caught.value.batch), caught.value.missing) == (0, 2)
    assert client.status()["collections"] == {}


def test_an_endless_stream_gives_groups_until_it_is_closed(client):
    with contextlib.closing(client.stream(endless=True, group_size=2)) as stream:
        groups = [next(stream) for _ in range(12)]
    assert len({t.seed for group in groups for t in group}) == 24
    wait_until(lambda: client.status()["collections"] == {})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep": "useful"}, r"keep is 'useful'\. Give \"informative\", or a function of a group"),
        ({"keep": "informative", "group_size": 1}, "group_size is 1"),
        ({"on_dropped": print}, "no group is dropped without keep"),
        ({"keep": len, "on_dropped": 3}, "on_dropped is 3"),
        ({"keep": "informative", "on_dropped": print, "group_size": 1}, "group_size is 1"),
        ({"n": None, "endless": True}, "a batch has an end"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_before_anything_begins(client, asked, message):
    with pytest.raises(TaskError, match=message):
        client.collect(**{"n": 4, "group_size": 2, "progress": False} | asked)


def test_a_budget_that_ends_a_collection_leaves_its_batch(client):
    with pytest.raises(IncompleteCollection, match=r"budget is spent: episodes: 4 of 4 are used") as caught:
        client.collect(20, group_size=2, seed=5, budget={"episodes": 4}, progress=False)
    assert (len(caught.value.batch), caught.value.missing) == (4, 16)
    with pytest.raises(ConfigError, match=r"budget\.episodes is 0"):
        client.stream(2, budget={"episodes": 0})


def test_an_evaluation_plays_each_task_several_times_and_gives_the_same_again(client):
    found = client.evaluate(trials=3, tasks=2, progress=False)
    assert [(rate.k, rate.value, rate.tasks) for rate in found.pass_rates] == [(1, 1.0, 2), (2, 1.0, 2), (3, 1.0, 2)]
    again = asyncio.run(client.aevaluate(trials=3, tasks=2))
    assert again.solved == found.solved == dict.fromkeys(found.solved, (3, 3))
    assert (len(found.solved), found.summary.faults) == (2, {})
    assert found.conditions == {"max_turns": None, "response_length": None, "max_steps": 200, "max_errors": 10} | {
        "official": True
    }


def test_an_evaluation_goes_beyond_the_turns_of_training_unless_it_is_told_not_to(client):
    cut = client.evaluate(tasks=1, max_turns=1, progress=False)
    assert dict(cut.summary.termination_reasons) == {"max_turns": 1}
    assert (cut.conditions["max_turns"], cut.conditions["official"]) == (1, False)


def test_a_trainer_s_logger_gets_the_service_s_numbers_as_floats(client):
    before = client.metrics()
    batch = client.collect(2, seed=3, progress=False)
    assert all(0 <= turn.queue_seconds <= turn.policy_seconds for t in batch for turn in t.turns)
    after = asyncio.run(client.ametrics())
    assert {type(value) for value in after.values()} == {float}
    assert after["slots"] == client.status()["slots"]
    assert after["engine_weight_version"] == client.weight_version()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["episodes_total/mock/completed"] == grown["reward/mock/count"] == 2
    assert grown["reward/mock/sum"] == sum(t.reward for t in batch)
    assert grown["sampled_tokens_total/mock"] == sum(t.policy_token_count for t in batch)
    assert grown["turn_seconds/policy/count"] == sum(len(t.turns) for t in batch)
    assert grown["episode_seconds/evaluation/sum"] == pytest.approx(sum(t.timing.evaluation_seconds for t in batch))


def test_an_evaluation_that_a_budget_ends_keeps_what_was_counted(client):
    with pytest.raises(IncompleteEvaluation, match="episodes: 1 of 1 are used") as caught:
        client.evaluate(trials=1, tasks=4, budget={"episodes": 1}, progress=False)
    assert caught.value.evaluation.summary.episodes + caught.value.missing == 4
    assert caught.value.evaluation.summary.scored >= 1
    for wrong, text in [({"trials": 0}, "trials is 0"), ({"tasks": -1}, "tasks is -1"), ({"late": "drop"}, "late")]:
        with pytest.raises(RolloutError, match=text):
            client.evaluate(**wrong)


def test_without_a_seed_collections_go_on_through_the_epoch(client):
    ids = [t.task.task_id for t in client.collect(domain="telecom", split="small", n=6, shuffle=False, progress=False)]
    choice = {"domain": "telecom", "split": "small", "ids": ids, "progress": False}
    drawn = [t.task.task_id for _ in range(3) for t in client.collect(2, **choice)]
    assert sorted(drawn) == sorted(ids), "three collections of two are one epoch of six"


def test_a_mix_of_domains_and_chosen_ids_can_be_asked_for(client):
    mixed = client.collect(8, domain={"mock": 1, "telecom": 1}, seed=1, progress=False)
    assert {t.task.domain for t in mixed} == {"mock", "telecom"}
    chosen = client.collect(domain="telecom", split="small", ids=None, n=1, progress=False)
    again = client.collect(domain="telecom", split="small", ids=[chosen[0].task.task_id], progress=False)
    assert [t.task for t in again] == [chosen[0].task]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 7, "group_size": 2}, "n=7 is not a positive multiple of group_size=2"),
        ({"n": 0}, "n=0"),
        ({"n": 2, "group_size": 0}, "group_size is 0"),
        ({"domain": "retial"}, "retial.*Choose one of"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"ids": ["nope"]}, "'nope'.*Valid"),
        ({"ids": "create_task_1"}, "ids is 'create_task_1', not a list"),
        ({"n": "8"}, "n is '8'"),
        ({"n": 2, "group_size": True}, "group_size is True"),
        ({"domain": {"mock": -1}}, "weight of mock is -1"),
        ({"domain": {"mock": 1, "telecom": 1}, "ids": ["x"]}, "not with a mix"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_a_collection_that_cannot_be_made_is_refused_in_words(client, arguments, message):
    with pytest.raises(TaskError, match=message):
        client.collect(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((RolloutConfig(), None, None), r"address is a RolloutConfig\. Write RolloutClient\(config="),
        (("", None, None), "address is ''"),
        ((None, {"limits.max_turns": 3}, None), r"config is .*Give a RolloutConfig"),
        (("auto", None, "yes"), "start is 'yes'"),
        ((None, None, False), "start is False, but without an address"),
        ((None, None, "detached"), "start is 'detached', but without an address"),
    ],
)
def test_a_client_s_own_arguments_are_checked_before_anything_starts(arguments, message):
    address, config, begin = arguments
    with pytest.raises(ConfigError, match=message):
        RolloutClient(address, config=config, start=begin)
    with pytest.raises(ConfigError, match=message):
        asyncio.run(RolloutClient.astart(address, config=config, start=begin))


TAKES = {
    "n": or_none(whole(1, 1_000_000)),
    "group_size": lambda value: whole(1, 8)(value) and 8 % value == 0,
    "groups_per_update": or_none(whole(1)),
    "domain": or_none(one_of("retail")),
    "split": or_none(nothing),
    "ids": or_none(nothing),
    "shuffle": or_none(truth),
    "seed": or_none(whole()),
    "sampling": or_none(one_of({})),
    "max_attempts": or_none(whole(1)),
    "max_staleness": or_none(whole(0)),
    "late": or_none(nothing),
}
"""Arguments of a collection, and which values of `tests.support.arguments` fit."""


@pytest.mark.parametrize("name", TAKES)
def test_an_argument_of_a_collection_is_taken_as_it_is_or_refused_by_its_name(client, name):
    def stream(value):
        client.stream(**{"n": 8} | {name: value}).close()

    check(stream, name, TAKES[name], examples=30)


@pytest.mark.parametrize(
    ("name", "fits", "says"),
    [
        ("weights", lambda value: isinstance(value, str) and bool(value.strip()), ""),  # the name of a checkpoint
        ("mode", nothing, "mode"),
        ("group", or_none(nothing), "group"),
    ],
)
def test_an_argument_of_an_update_is_taken_or_refused_by_its_name(client, name, fits, says):
    right = {"weights": {"w": np.zeros(1, np.float32)}}
    check(lambda value: client.update_weights(**right | {name: value}), name, fits, says=says, examples=30)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("backend", nothing),
        ("address", or_none(lambda value: isinstance(value, str) and bool(value.strip()))),
        ("timeout_seconds", number(1e-3, 1e8)),
    ],
    ids=["backend", "address", "timeout_seconds"],
)
def test_an_argument_of_a_weight_group_is_refused_by_its_name(client, name, fits):
    def make(value):
        client.weight_group(**{"backend": "gloo", name: value})

    check(make, name, nothing, examples=30, left_out=fits)


def test_how_replicas_pause_is_one_of_the_known_ways(client):
    check(client.pause, "mode", nothing, examples=30)


def test_an_unknown_argument_is_refused_with_the_known_ones(client):
    with pytest.raises(RolloutError, match=r"temperature.*Choose from endless, domain, split"):
        client.collect(1, temperature=1.0)


def test_the_async_twins_do_what_the_others_do(client):
    async def use():
        batch = await client.acollect(4, group_size=2)
        groups = [group async for group in client.astream(4, group_size=2)]
        status = await client.astatus()
        with pytest.raises(TaskError):
            await client.acollect(3, group_size=2)
        return batch, groups, status

    batch, groups, status = asyncio.run(use())
    assert len(batch) == 4
    assert [len(group) for group in groups] == [2, 2]
    assert status["slots"] == 16


def test_collections_asked_for_at_once_are_served_side_by_side(client):
    async def use():
        return await asyncio.gather(*(client.acollect(6, seed=seed) for seed in range(3)))

    assert [len(batch) for batch in asyncio.run(use())] == [6, 6, 6]


def test_a_second_client_attaches_to_the_running_service_by_name_and_leaves_it_running(client):
    second = RolloutClient("auto", config=client.config)
    assert second.config == client.config
    assert len(second.collect(2, progress=False)) == 2
    second.close()
    assert len(client.collect(2, progress=False)) == 2


def test_attaching_where_no_service_runs_says_how_to_start_one(cluster, monkeypatch):
    monkeypatch.setenv("ROLLOUT_SERVICE__NAME", "elsewhere")
    with pytest.raises(ServiceError, match=r"No service named 'elsewhere'.*config="):
        RolloutClient("auto")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"tasks__domain": "retial"}, TaskError, "retial"),
        ({"policy__tokenizer": "/no/such/folder"}, RolloutError, "/no/such/folder"),
        ({"user__model": "openai/x", "user__api_key_var": "NO_SUCH_KEY"}, ConfigError, "NO_SUCH_KEY"),
        ({"user__model": "openai/x", "user__base_url": "http://127.0.0.1:9"}, RolloutError, "nothing answers at"),
    ],
    ids=["domain", "tokenizer", "key", "endpoint"],
)
def test_a_service_that_cannot_work_is_refused_at_start_and_leaves_nothing(cluster, overrides, error, message):
    with pytest.raises(error, match=message):
        start("refused", **overrides)
    wait_until(lambda: "refused-coordinator" not in ray.util.list_named_actors())


def test_a_collection_that_somebody_cancels_is_reported_with_what_came(client):
    stream = client.stream(9, seed=0)
    came = [next(stream)]
    ray.get(client._coordinator.cancel.remote(stream.collection_id))
    with pytest.raises(ServiceError, match=r"cancelled|no collection"):
        came.extend(stream)
    assert len(came) < 9


def test_attaching_with_other_settings_than_the_service_has_is_refused(client):
    other = client.config.with_overrides({"limits.max_turns": 3})
    with pytest.raises(ServiceError, match=r"limits\.max_turns: the running service 'shared' has 30, not 3"):
        RolloutClient("auto", config=other)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"service.max_buffered_groups": 3}, r"service\.max_buffered_groups: .*'shared' has 64, not 3"),
        ({"service.slots": 3}, r"service\.slots: .*'shared' has 16, not 3"),
        ({"policy.script.early_stop": 0.5}, r"policy\.script\.early_stop: .*'shared' has 0\.0, not 0\.5"),
    ],
)
def test_an_attached_client_does_not_get_other_settings_than_it_sets(client, overrides, message):
    own = RolloutConfig.load(overrides={"service.name": "shared"} | overrides, environ={})
    with pytest.raises(ServiceError, match=message):
        RolloutClient("auto", config=own)


@pytest.fixture(scope="module")
def solo(cluster):
    """A service without a user, each of whose turns waits longer than it may, which is a fault; an episode is tried
    twice. It is detached. The last tests close its client."""
    policy = {"policy__script": {"latency": {"mean": 0.5}}, "policy__timeout_seconds": 0.2}
    selection = {"tasks__domain": "telecom", "tasks__split": "small"}
    own = {"service__name": "solo", "service__actors": 1, "service__max_attempts": 2}
    client = RolloutClient("auto", config=settings(agent="solo", **own, **policy, **selection), start="detached")
    yield client
    client.close()
    services.stop(services.find("solo", "rollout_service"))


def test_an_attached_client_s_attempts_and_staleness_are_those_of_its_collections(solo):
    own = {"service.name": "solo", "service.max_attempts": 1, "service.max_staleness": 0}
    attached = RolloutClient("auto", config=RolloutConfig.load(overrides=own, environ={}))
    for client, attempts in ((solo, 2), (attached, 1)):
        (group,) = client.stream(1, seed=0)
        assert [t.attempt for t in group] == [attempts]
    (group,) = solo.stream(1, seed=0, max_attempts=1)
    assert [t.attempt for t in group] == [1]


def test_a_group_with_too_few_scored_episodes_is_reported_and_not_given(solo):
    stream, withheld = solo.stream(2, group_size=2, seed=0, max_attempts=1, min_group_size=1), []
    stream.withheld = lambda group, why: withheld.append((why, {t.fault.kind for t in group}))
    before = solo.metrics().get("withheld_total", 0.0)
    assert list(stream) == []
    why = "0 of 2 trajectories have a score, fewer than min_group_size, which is 1"
    assert withheld == [(why, {FaultKind.POLICY})]
    with pytest.raises(IncompleteCollection, match="2 of 2 episodes failed after all attempts") as raised:
        solo.collect(2, group_size=2, seed=0, max_attempts=1, min_group_size=2, progress=False)
    assert (len(raised.value.failures), raised.value.missing) == (2, 0)
    assert solo.metrics()["withheld_total"] == before + 2


def test_tasks_unfit_for_the_agent_are_refused_when_asked_for(solo):
    with pytest.raises(RolloutError, match="solo"):
        solo.collect(1, domain="retail", split="base", progress=False)


def test_closing_twice_is_closing_once_and_a_closed_client_says_so(solo):
    solo.close()
    solo.close()
    with pytest.raises(RolloutError):
        solo.collect(1)


def test_a_detached_service_goes_on_without_the_client_that_started_it(solo):
    solo.close()
    with RolloutClient("auto", config=settings(service__name="solo"), start=False) as another:
        status = another.status()
    assert (status["state"], status["owner"], status["actors"]) == ("running", None, 1)


def test_an_attached_client_chooses_its_own_tasks(client):
    own = RolloutConfig.load(
        overrides={"service.name": "shared", "tasks.domain": "telecom", "tasks.split": "small"}, environ={}
    )
    attached = RolloutClient("auto", config=own)
    assert [t.task.domain for t in attached.collect(2, progress=False)] == ["telecom"] * 2


def test_whole_passes_without_a_seed_differ_in_their_episode_seeds(client):
    first, second = (client.collect(progress=False) for _ in range(2))
    assert {t.task for t in first} == {t.task for t in second}
    assert not {t.seed for t in first} & {t.seed for t in second}


def test_a_collection_samples_as_it_asks_to_and_what_it_does_not_say_is_the_service_s(client):
    batch = client.collect(2, sampling={"temperature": 0.5, "max_new_tokens": 900}, progress=False)
    service = client.config.policy.sampling.model_dump()
    assert [t.provenance.sampling for t in batch] == [service | {"temperature": 0.5, "max_new_tokens": 900}] * 2
    with pytest.raises(ConfigError, match=r"policy\.sampling\.temprature"):
        client.collect(2, sampling={"temprature": 0.5}, progress=False)
    with pytest.raises(ConfigError, match=r"sampling is 0\.5"):
        client.collect(2, sampling=0.5, progress=False)


@pytest.fixture(scope="module")
def slow(cluster):
    """A service whose turns take a while. Tests use it in order: the later ones kill parts of it, the last one all."""
    script = {"latency": {"mean": 0.2}}
    limits = {"service__slots": 3, "service__max_attempts": 5, "service__max_buffered_groups": 3}
    client = start("slow", service__actors=2, policy__script=script, **limits)
    try:
        yield client
    finally:
        client.close()


def _finished(client: RolloutClient) -> int:
    return int(client.status()["finished"])


def test_an_interrupted_wait_loses_no_group(slow):
    stream = slow.stream(12, seed=0)

    async def impatient():
        came = []
        while len(came) < 12:
            try:
                came.extend(await asyncio.wait_for(anext(stream), 0.1))
            except TimeoutError:
                continue
        return came

    trajectories = asyncio.run(impatient())
    assert len({t.trajectory_id for t in trajectories}) == 12

    interrupted = slow.stream(6, seed=1)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C
    try:
        came, interrupts = [], 0
        while len(came) < 6:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            try:
                came.extend(next(interrupted))
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len({t.trajectory_id for t in came}) == 6
    assert interrupts > 0


def test_leaving_a_stream_early_cancels_the_rest(slow):
    def finished() -> int:
        return _finished(slow) - before

    def idle() -> bool:
        status = slow.status()
        return status["running"] == 0 and status["collections"] == {}  # nothing of it is kept

    before = _finished(slow)
    stream = slow.stream(200, seed=0)
    next(stream)
    stream.close()
    wait_until(idle)
    assert finished() < 20
    slow.astream(200, seed=0).close()  # before anybody waited for it to be accepted
    wait_until(idle)
    assert finished() < 30


def test_closing_a_client_cancels_its_open_streams_and_no_others(slow):
    second = RolloutClient("auto", config=slow.config)
    kept, left = slow.stream(60, seed=0), second.stream(200, seed=0)
    next(left)
    second.close()
    assert set(slow.status()["collections"]) == {kept.collection_id}
    with pytest.raises(ServiceError, match=r"cancelled: its client was closed|no collection"):
        next(left)
    kept.close()


def test_finished_groups_that_nobody_takes_hold_new_ones_back(slow):
    wait_until(lambda: slow.status()["actors"] == 2)
    stream = slow.stream(40, seed=0)

    def held_back() -> dict[str, Any] | None:
        collection = slow.status()["collections"][stream.collection_id]
        return collection if collection["held_back"] == "buffer" and not collection["running"] else None

    wait_until(held_back)
    assert 3 <= held_back()["done"] <= 3 + 6, "the buffer, and what was running when it filled"
    assert len(list(stream)) == 40


def test_killing_every_environment_actor_one_by_one_loses_and_repeats_no_episode(slow):
    stream = slow.stream(36, group_size=2, seed=0)
    groups = []
    for position in range(2):
        groups.append(next(stream))
        ray.kill(ray.get_actor(f"slow-environment-{position}", namespace="rollout_service"))
    groups.extend(stream)
    trajectories = [t for group in groups for t in group]
    status = slow.status()
    assert sorted(t.trajectory_id for t in trajectories) == sorted({t.trajectory_id for t in trajectories})
    assert len(trajectories) == 36
    assert {t.outcome for t in trajectories} == {"completed"}
    assert all(t.reward is not None for t in trajectories)
    assert max(t.attempt for t in trajectories) > 1, "the kills hit no running episode: the test shows nothing"
    assert status["lost_actors"] == 2
    assert status["faults"]["service"] >= 2
    assert violations(trajectories) == []


def test_killing_a_policy_replica_loses_and_repeats_no_episode(slow):
    stream = slow.stream(24, seed=0)
    groups = [next(stream)]
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith("SERVE_REPLICA::slow-policy#"):
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=True)
    groups.extend(stream)
    trajectories = [t for group in groups for t in group]
    assert len({t.trajectory_id for t in trajectories}) == 24
    assert {t.outcome for t in trajectories} == {"completed"}
    assert {t.attempt for t in trajectories} == {1}, "only the lost turns are asked for again"


def _is_dead(actor) -> bool:
    try:
        ray.get(actor.__ray_ready__.remote())
    except ray.exceptions.RayActorError:
        return True
    return False


def test_losing_the_fleet_ends_no_collection_and_losing_the_coordinator_keeps_what_came(slow):
    fleet, coordinator = (
        ray.get_actor(f"slow-{actor}", namespace="rollout_service") for actor in ("fleet", "coordinator")
    )
    ray.kill(fleet)
    wait_until(lambda: _is_dead(fleet))  # until then it could still carry out the pause
    with pytest.raises(ServiceError, match="The service's fleet actor is gone: replicas can no longer be updated"):
        slow.pause()
    before = _finished(slow)
    threading.Thread(target=lambda: (wait_until(lambda: _finished(slow) >= before + 2), ray.kill(coordinator))).start()
    with pytest.raises(IncompleteCollection, match=r"never came: The service's coordinator is gone") as caught:
        slow.collect(60, seed=0, progress=False)
    assert len(caught.value.batch) + caught.value.missing == 60
    assert caught.value.batch

    left = services.find("slow", "rollout_service")
    assert (left.is_dead, left.applications, services.report(left)) == (True, ["slow-policy"], {"state": "dead"})
    with pytest.raises(ServiceError, match=r"dead service named 'slow' left something.*service stop slow"):
        start("slow", service__actors=2)
    assert services.find("slow", "rollout_service").applications == ["slow-policy"], "a refusal removes nothing"
    services.stop(left)
    assert services.find("slow", "rollout_service") is None


def test_episodes_that_fail_for_good_are_reported_and_the_others_kept(cluster):
    # A turn that waits longer than it may is the policy's fault; the exponential draw lets some episodes through.
    slow = {"latency": {"distribution": "exponential", "mean": 0.25}}
    limits = {"policy__timeout_seconds": 0.6, "service__max_attempts": 1}
    with start("failing", policy__script=slow, **limits) as client:
        with pytest.raises(IncompleteCollection) as caught:
            client.collect(27, seed=0, progress=False)
        status = client.status()
        assert list(status["faults"]) == ["policy"]
        assert status["faults"]["policy"] >= len(caught.value.failures), "a fault that many had was not their last word"
        assert "the policy gave no answer" in status["last_faults"]["policy"]
        rewards = caught.value.batch.rewards
        assert (status["finished"], status["scored"]) == (27, len(rewards))
        assert status["mean_reward"] == pytest.approx(rewards.mean())
    batch, failures = caught.value.batch, caught.value.failures
    assert len(batch) + len(failures) == 27
    assert batch
    assert all(t.reward is not None for t in batch)
    assert all(t.reward is None and t.fault.kind is FaultKind.POLICY for t in failures)
    assert f"{len(failures)} of 27 episodes failed" in str(caught.value)


def test_a_user_simulator_that_misbehaves_changes_no_reward_and_stalls_no_neighbour(cluster):
    chosen = tasks.references("telecom", "small")[:2] + tasks.references("retail", "base", ["0", "1"])
    # Every third request fails, in turn with each kind of failure.
    kinds = [
        openai_server.rate_limited(0.2),
        openai_server.failing(500),
        openai_server.empty,
        openai_server.hang,
        openai_server.truncated,
        openai_server.malformed_tool_call,
    ]

    def schedule(request: openai_server.Request) -> openai_server.Behaviour:
        return kinds[request.number // 3 % len(kinds)] if request.number % 3 == 2 else openai_server.ok

    api = openai_server.OpenAIServer(openai_server.gold_user([tasks.get(t) for t in chosen]), schedule)
    waits = {"user__timeout_seconds": 1.0, "user__max_retry_wait_seconds": 0.3, "user__retries": 10}
    with (
        api,
        start("llm-user", user__model="openai/m", user__base_url=api.base_url, **waits) as client,
    ):

        async def both():
            return await asyncio.gather(
                client.acollect(domain="telecom", split="small", ids=[t.task_id for t in chosen[:2]], group_size=2),
                client.acollect(domain="retail", ids=["0", "1"], group_size=2),
            )

        telecom, retail = asyncio.run(both())
        assert client.status()["faults"] == {}
    trajectories = [*telecom, *retail]
    assert [(t.outcome, t.reward) for t in trajectories] == [("completed", 1.0)] * 8
    assert sum(t.user_usage.failed_requests for t in trajectories) > 4
    assert any(m["role"] == "user" and m.get("tool_calls") for t in telecom for m in t.messages)
    assert violations(trajectories) == []


def test_a_stream_that_waits_says_for_what(cluster, monkeypatch, caplog):
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(logs.rate_limit, "_seconds", 0.0)
    with start("waiting", user__script={"latency": {"mean": 600.0}}, service__slots=2) as client:
        stream = client.stream(4, group_size=2, seed=0)

        def take() -> None:
            with contextlib.suppress(ServiceError):  # the stream is closed below
                list(stream)

        waiting = threading.Thread(target=take, daemon=True)
        waiting.start()
        wait_until(lambda: "waiting for 2 episodes running, the oldest for" in caplog.text)
        wait_until(lambda: "2 in the user simulator" in caplog.text)

        async def wait_for_a_slot():
            with contextlib.closing(client.astream(2, seed=1)) as another:
                first = asyncio.ensure_future(anext(another))
                await asyncio.to_thread(wait_until, lambda: "waiting for a free slot: all 2 are taken" in caplog.text)
                assert not first.done()
                first.cancel()

        asyncio.run(wait_for_a_slot())
        (progress,) = [c for name, c in client.status()["collections"].items() if name == stream.collection_id]
        assert progress["places"] == {"the user simulator": 2}
        assert progress["waits_for"].startswith("2 episodes running, the oldest for")
        assert (progress["done"], progress["scored"], progress["mean_reward"]) == (0, 0, None)
        stream.close()
        waiting.join(60)


def test_a_start_that_is_cancelled_leaves_no_service(cluster):
    async def use():
        config = settings(service__name="abandoned", service__actors=1, tasks__domain="mock")
        starting = asyncio.create_task(RolloutClient.astart(config=config))
        await asyncio.to_thread(wait_until, lambda: "abandoned-coordinator" in ray.util.list_named_actors())
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(use())
    wait_until(lambda: not any(thread.name.startswith("rollout-client-") for thread in threading.enumerate()))
    assert not [name for name in ray.util.list_named_actors() if name.startswith("abandoned")]


def test_no_cluster_at_the_address_is_one_clear_error():
    # In a process of its own: this one is connected.
    import subprocess
    import sys

    program = (
        "from rollout_service import RolloutClient\n"
        "from rollout_service.errors import ServiceError\n"
        "try:\n    RolloutClient('127.0.0.1:1')\n"
        "except ServiceError as error:\n    print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert "refused: Cannot connect to a Ray cluster at '127.0.0.1:1'" in done.stdout, done.stderr


def test_importing_the_package_pulls_in_neither_ray_nor_torch_nor_tau2():
    import subprocess
    import sys

    program = (
        "import sys, rollout_service; "
        "print([m for m in ('ray', 'torch', 'transformers', 'tau2', 'litellm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_configuration_travels_with_the_service(client):
    assert isinstance(client.config, RolloutConfig)
    assert client.config.tasks.domain == "mock"
