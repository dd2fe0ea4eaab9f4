"""The coordinator, with a fleet in this process and actors that play as told: retries, endings, weights, log lines."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

import actors.admission as admission
import actors.attempt as attempt
import actors.clients as clients
import actors.coordinator as module
import rollout_service.collecting.breaker as breaker
import rollout_service.collecting.collection as collection
from actors.clients import Clients
from actors.coordinator import Coordinator
from actors.fleet import Fleet
from actors.pool import PoolUser
from rollout_service.collecting.continuation import Continuation
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config.budget import Budget
from rollout_service.errors import POISON_TASK, BudgetReached, ConfigError, Fault, FaultKind, ServiceError
from rollout_service.metrics.engines import count_update
from rollout_service.metrics.text import flat
from rollout_service.policy.replicas import CacheFigures, DesiredState, FleetState, Occupancy, ReplicaState
from rollout_service.record.trajectory import Outcome
from tests.support.episodes import settings

Play = Callable[[EpisodeRequest], EpisodeSummary | Awaitable[EpisodeSummary]]

ENDPOINT = {"policy__engine": "http", "policy__url": "http://127.0.0.1:1", "policy__tokenizer": "t"}


class Local:
    """Stands for an actor's handle: its methods run in this process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


class Pool:
    """Stands for the actor pool, with one actor at a time."""

    play: Play

    def __init__(self, application: str | None, user: PoolUser) -> None:
        self.user = user
        self.lost = 0
        self.start_error = None
        self.cancelled: list[str] = []
        self.min_versions: list[Any] = []
        self.stopped = False

    def __len__(self) -> int:
        return 1

    async def start(self, config: Any, variables: Any) -> None:
        self.user.actor_joined("actor-0")

    def fill_up(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True

    def lose(self, name: str, error: Exception) -> bool:
        self.lost += 1
        self.user.actor_left(name)
        self.user.actor_joined(f"actor-{self.lost}")
        return isinstance(error, ActorDiedError) and error.preempted

    def actors(self) -> dict[str, Any]:
        return {}

    def end_retired(self) -> None: ...

    def resize(self, now: float, free_cpus: float) -> None: ...

    def cancel(self, trajectory_ids: list[str]) -> None:
        self.cancelled += trajectory_ids

    def cut(self, min_versions: Any) -> None:
        self.min_versions.append(min_versions)

    async def places(self) -> dict[str, tuple[float, str]]:
        return {}

    def run_episode(self, name: str, request: EpisodeRequest) -> tuple[Any, Any]:
        async def summary() -> EpisodeSummary:
            played = self.play(request)
            return played if isinstance(played, EpisodeSummary) else await played

        return summary(), request


def scored(request: EpisodeRequest, versions: tuple[int, int] | None = None) -> EpisodeSummary:
    return EpisodeSummary(request.trajectory_id, Outcome.COMPLETED, "user_stop", 1.0, None, versions)


@pytest.fixture
def start(monkeypatch) -> Callable[..., Any]:
    """Starts a coordinator whose episodes are played as told."""
    monkeypatch.setattr(module, "ActorPool", Pool)
    monkeypatch.setattr(collection, "seconds_before_retry", lambda attempt: 0.0)
    monkeypatch.setattr(attempt.ray, "put", lambda value: value)

    async def started(play: Play, application: str | None = "application", **overrides: Any) -> Coordinator:
        config = settings(tasks__domain="mock", service__slots=2, **overrides)
        made = Coordinator(config, application)
        made._pool.play = play
        await made.start({}, Local(Fleet(config, application, Local(made))))
        return made

    return started


async def taken(coordinator: Coordinator, n: int = 2) -> list[Any]:
    """Submits a collection, and takes its groups to the end."""
    collection, *_ = await coordinator.submit(CollectionRequest(n=n), "client")
    return [group async for group in until_none(lambda: coordinator.next_group(collection))]


async def until_none(ask: Callable[[], Any]) -> Any:
    while (found := await ask()) is not None:
        yield found


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(f"{record.levelname} {record.getMessage()}" for record in caplog.records)


async def test_a_lost_actor_is_replaced_and_its_episode_played_again_with_a_line_for_each(start, caplog):
    losses = iter([RayActorError()])

    def play(request: EpisodeRequest) -> EpisodeSummary:
        if (loss := next(losses, None)) is not None:
            raise loss
        return scored(request)

    with caplog.at_level("INFO"):
        coordinator = await start(play)
        groups = await taken(coordinator)
    assert sorted(reference.attempt for group in groups for reference in group.trajectories) == [1, 2]
    status = await coordinator.status()
    assert (status["lost_actors"], status["faults"], status["finished"]) == (1, {"service": 1}, 2)
    lines = said(caplog)
    assert "begun: 2 episodes in groups of 1." in lines
    assert "is played again: its environment actor was lost, which does not count as an attempt." in lines
    assert "ended after 0 s: 2 of 2 episodes done, 0 failed, 1 retries." in lines


async def test_metrics_count_attempts_when_they_end_and_forget_a_collection_that_is_over(start):
    faults = iter([Fault(FaultKind.USER_SIMULATOR, "Timeout", "no answer", retryable=True)])

    async def play(request: EpisodeRequest) -> EpisodeSummary:
        started.set()
        await gate.wait()
        if (fault := next(faults, None)) is not None:
            return EpisodeSummary(request.trajectory_id, Outcome.ABORTED, "fault", None, fault, policy_tokens=5)
        return dataclasses.replace(scored(request, (0, 0)), policy_tokens=10)

    started, gate = asyncio.Event(), asyncio.Event()
    coordinator = await start(play, None, **ENDPOINT)
    taking = asyncio.ensure_future(taken(coordinator, n=3))
    await started.wait()
    during = flat(await coordinator.metrics())
    gate.set()
    await taking
    after = flat(await coordinator.metrics())
    names = ("running", "slots", "waiting", "open_collections", "held_back/slots")
    assert [during[name] for name in names] == [2, 2, 1, 1, 1]
    assert [after[name] for name in names] == [0, 2, 0, 0, 0]
    assert after["episodes_total/mock/completed"] == after["reward/mock/count"] == 3
    assert (after["faults_total/user_simulator"], after["retries_total"]) == (1, 1)
    assert after["sampled_tokens_total/mock"] == 35, "an attempt that is made again has cost its tokens, too"
    assert after["staleness/mock/mean"] == 0


async def test_metrics_tell_what_the_service_holds_and_why_nothing_starts(start, monkeypatch):
    troubles = iter([RayActorError(), Fault(FaultKind.USER_SIMULATOR, "Timeout", "no answer", retryable=True)])

    def play(request: EpisodeRequest) -> EpisodeSummary:
        if isinstance(trouble := next(troubles, None), Exception):
            raise trouble
        if trouble is not None:
            return EpisodeSummary(request.trajectory_id, Outcome.ABORTED, "fault", None, trouble)
        return scored(request)

    coordinator = await start(play, None, **ENDPOINT)
    monkeypatch.setattr(collection, "seconds_before_retry", lambda attempt: 600.0)
    count_update(coordinator._fleet._actor._meter, "drain", None)
    await coordinator.policy_changed(FleetState(0, DesiredState(pause="drain")))
    await coordinator.submit(CollectionRequest(n=3), "client")
    paused = flat(await coordinator.metrics())
    with monkeypatch.context() as none_is_ready:
        none_is_ready.setattr(Pool, "__len__", lambda self: 0)
        alone = flat(await coordinator.metrics())
    await coordinator.policy_changed(FleetState(0))
    async with asyncio.timeout(120):
        while (await coordinator.status())["finished"] < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    after = flat(await coordinator.metrics())
    assert (paused["paused"], paused["held_back/paused"], paused["held_back/actors"]) == (1, 1, 0)
    assert (alone["actors"], alone["held_back/paused"], alone["held_back/actors"]) == (0, 0, 1)
    assert (after["paused"], after["lost_actors_total"], after["resting"], after["waiting_groups"]) == (0, 1, 2, 1)
    assert after["weight_updates_total/drain/failed"] == 1, "the fleet's numbers are among them"


def short_of_memory(turns: int, seconds: float) -> Callable[[], Awaitable[list[ReplicaState]]]:
    """Stands for the fleet's `replicas`: one, whose memory holds one episode, and which lost so many seconds."""
    cache = CacheFigures(11_000, 16, 8, turns, 9000 * turns, seconds, 64, 10_000.0, 0.0, 0.2)

    async def replicas() -> list[ReplicaState]:
        return [ReplicaState("r", 0, False, 16, 0, occupancy=Occupancy(8, 0.9, 0.1, cache))]

    return replicas


async def test_episodes_wait_while_the_replicas_memory_has_no_room_and_the_service_says_so(start, monkeypatch, caplog):
    gates = [asyncio.Event() for _ in range(3)]
    played: list[int] = []

    async def play(request: EpisodeRequest) -> EpisodeSummary:
        played.append(len(played))
        await gates[played[-1]].wait()
        return scored(request)

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    monkeypatch.setattr(admission, "_LOOK_SECONDS", 0.0)
    coordinator = await start(play, policy__engine="sglang", policy__model="m")
    fleet, scheduler = coordinator._fleet._actor, coordinator._scheduler
    fleet.replicas = short_of_memory(0, 0.0)
    with caplog.at_level("INFO"):
        collection, *_ = await coordinator.submit(CollectionRequest(n=3), "client")
        await until(lambda: bool(coordinator._admission._controller.capacity))
        assert scheduler.limit is None
        fleet.replicas = short_of_memory(10_000, 1e6)
        await until(lambda: scheduler.limit == 1)
        gates[0].set()
        await until(lambda: scheduler.running == 1)
        held, status = flat(await coordinator.metrics()), await coordinator.status()
        await until(lambda: "replicas' memory for keys and values has no room" in said(caplog))
    assert played == [0, 1]
    assert (held["admitted"], held["held_back/memory"], held["held_back/slots"]) == (1, 1, 0)
    assert (status["admission"]["limit"], status["admission"]["capacity_tokens"]) == (1, 11_000)
    waits_for = status["collections"][collection]["waits_for"]
    assert "room in the replicas' memory for keys and values: it lets 1 of 2 slots' episodes run" in waits_for
    assert "At most 1 episodes are in flight" in said(caplog)
    for gate in gates:
        gate.set()
    assert len([group async for group in until_none(lambda: coordinator.next_group(collection))]) == 3


async def test_replicas_that_say_nothing_of_their_memory_hold_nothing_back_and_the_log_says_it_once(
    start, monkeypatch, caplog
):
    coordinator = await start(scored, policy__engine="sglang", policy__model="m")
    silent = coordinator._admission
    silent._heard_at -= 1000

    async def replicas() -> list[ReplicaState]:
        raise ServiceError("The policy's replicas cannot be reached.")

    fleet = SimpleNamespace(replicas=SimpleNamespace(remote=replicas))
    with caplog.at_level("WARNING"):
        await silent.look(fleet)
        await silent.look(fleet)
    assert coordinator._scheduler.limit is None
    assert said(caplog).count("The replicas say nothing of their memory for keys and values") == 1


async def test_without_admission_by_the_cache_episodes_wait_for_slots_only(start):
    sglang = {"policy__engine": "sglang", "policy__model": "m"}
    autoscaled = sglang | {"policy__autoscaling": {"max_replicas": 4}}  # it must see the turns that are wanted
    for settings_ in (sglang | {"policy__admission": "slots"}, autoscaled, {}):
        coordinator = await start(scored, **settings_)
        assert (await coordinator.status())["admission"] is None


async def test_a_coordinator_is_up_also_while_its_replicas_are_replaced(start, caplog):
    async def no_replica() -> None:
        raise RayTaskError("replicas", "Traceback", ServiceError("1 of 1 replicas failed."))

    coordinator = await start(scored)
    coordinator._fleet = SimpleNamespace(replicas=SimpleNamespace(remote=no_replica))
    coordinator._pool.complete = lambda: None
    with caplog.at_level("INFO"):
        await coordinator.ready(1.0, "replicas 0.7 s")
    assert "is up after 1.0 s; policy: scripted, replicas: none that answers" in said(caplog)
    assert len(await taken(coordinator)) == 2


async def test_an_impossible_request_ends_its_collection_with_the_reason(start, caplog):
    def play(request: EpisodeRequest) -> EpisodeSummary:
        raise RayTaskError("run_episode", "Traceback", ConfigError("the key is not set."))

    coordinator = await start(play)
    with pytest.raises(ConfigError, match="the key is not set"):
        await taken(coordinator)
    assert coordinator._pool.cancelled, "what runs of it is told to end"
    assert "failed after 0 s" in said(caplog)
    assert (await coordinator.status())["collections"] == {}


@pytest.mark.parametrize(("is_marked", "attempts"), [(True, 1), (False, 3)])
async def test_an_error_that_an_environment_actor_marked_as_final_is_not_played_again(is_marked, attempts, start):
    cause = TypeError("a programming error")
    if is_marked:
        cause.retryable = False

    def play(request: EpisodeRequest) -> EpisodeSummary:
        raise RayTaskError("run_episode", "Traceback", cause)

    coordinator = await start(play)
    [group] = await taken(coordinator, n=1)
    [trajectory] = group.trajectories
    assert trajectory.fault.retryable is not is_marked
    assert (await coordinator.status())["faults"] == {"service": attempts}


async def held(start) -> tuple[Coordinator, asyncio.Event]:
    """A coordinator whose episodes end once the event is set."""
    gate = asyncio.Event()

    async def play(request: EpisodeRequest) -> EpisodeSummary:
        await gate.wait()
        return scored(request)

    return await start(play), gate


async def test_a_cancelled_collection_is_an_error_for_whoever_waits_for_it(start, caplog):
    coordinator, gate = await held(start)
    submission = await coordinator.submit(CollectionRequest(n=9), "client")
    waiting = asyncio.ensure_future(coordinator.next_group(submission[0]))
    await asyncio.sleep(0)
    with caplog.at_level("INFO"):
        cancelling = asyncio.ensure_future(coordinator.cancel_submitted(submission))
        with pytest.raises(ServiceError, match="The collection was cancelled"):
            await waiting
        assert not cancelling.done(), "two episodes still run"
        gate.set()
        await cancelling
    with pytest.raises(ServiceError, match="There is no collection"):
        await coordinator.next_group(submission[0])
    assert "was cancelled after 0 s: 0 of 9 episodes done" in said(caplog)
    assert "WARNING" not in said(caplog), "a cancellation is no failure"


async def test_a_client_that_leaves_or_falls_silent_loses_its_own_collections_only(start, monkeypatch, caplog):
    monkeypatch.setattr(module, "Clients", lambda seconds, gone, owner: Clients(0.5, gone, owner))
    coordinator, gate = await held(start)
    names = ("leaving", "silent", "beating")
    leaving, silent, kept = [(await coordinator.submit(CollectionRequest(n=2), name))[0] for name in names]
    waiting = asyncio.ensure_future(coordinator.next_group(silent))
    await coordinator.leave("leaving")
    assert set((await coordinator.status())["collections"]) == {silent, kept}
    while not waiting.done():
        await coordinator.renew("beating")
        await asyncio.sleep(0.01)
    with pytest.raises(ServiceError, match=r"was cancelled: its client was silent for service\.lease_seconds=0\.5\."):
        await waiting
    status = await coordinator.status()
    assert (set(status["collections"]), set(status["clients"])) == ({kept}, {"beating"})
    assert f"Collection {leaving} was cancelled after 0 s: 0 of 2 episodes done" in said(caplog)
    assert "its client was closed" in said(caplog)
    with pytest.raises(ServiceError, match="its client was silent"):
        await coordinator.next_group(silent)
    gate.set()
    assert await coordinator.next_group(kept) is not None, "asking for a group renews the lease as well"


async def test_a_client_that_was_silent_while_it_waited_gets_its_group_once_it_beats_again(start, tmp_path):
    gate = asyncio.Event()

    async def play(request: EpisodeRequest) -> EpisodeSummary:
        await gate.wait()
        return scored(request)

    coordinator = await start(play, service__journal=str(tmp_path))
    accepted = await coordinator.submit(CollectionRequest(n=4, group_size=4), "client")
    waiting = asyncio.ensure_future(coordinator.next_group(accepted.collection_id))
    await asyncio.sleep(0)
    coordinator._client_is_gone("client", "it was silent")
    gate.set()
    while coordinator._scheduler.running:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not waiting.done(), "two of four episodes have not begun"
    await coordinator.renew("client")
    assert len((await waiting).trajectories) == 4
    await coordinator.stop()


async def given(coordinator: Coordinator, collection: str) -> tuple[list[int], str]:
    """Sizes of the groups until the end, and what ends them."""
    sizes: list[int] = []
    try:
        while (group := await coordinator.next_group(collection)) is not None:
            sizes.append(len(group.trajectories))
    except BudgetReached as end:
        return sizes, str(end)
    raise AssertionError("nothing ended it early")


async def test_a_collection_s_budget_ends_it_after_the_groups_that_had_begun(start):
    coordinator = await start(scored)
    request = CollectionRequest(n=40, group_size=2, budget=Budget(episodes=1))
    accepted = await coordinator.submit(request, "client")
    sizes, said = await given(coordinator, accepted.collection_id)
    assert (accepted.episodes, sizes) == (40, [2]), "the group that had begun is whole"
    assert "The collection's budget is spent: episodes: 1 of 1 are used." in said
    assert len(await taken(coordinator)) == 2, "others go on"


async def test_a_budget_that_is_reached_with_everything_begun_cuts_nothing(start):
    coordinator = await start(scored)
    accepted = await coordinator.submit(CollectionRequest(n=6, budget=Budget(episodes=6)), "client")
    groups = [group async for group in until_none(lambda: coordinator.next_group(accepted.collection_id))]
    assert len(groups) == 6


async def test_attempts_that_failed_are_paid_from_the_budget_too(start):
    def play(request: EpisodeRequest) -> EpisodeSummary:
        fault = Fault(FaultKind.ENVIRONMENT, "Timeout", "late", retryable=True) if request.attempt == 1 else None
        return dataclasses.replace(scored(request), fault=fault, policy_tokens=10)

    coordinator = await start(play, service__max_attempts=2)
    accepted = await coordinator.submit(CollectionRequest(n=9, budget=Budget(policy_tokens=40)), "client")
    sizes, said = await given(coordinator, accepted.collection_id)
    assert len(sizes) < 4, "four would be paid if only their last attempts counted"
    assert "policy_tokens: 40 of 40 are used" in said


async def test_time_that_is_over_ends_a_collection_that_waits(start):
    coordinator, gate = await held(start)
    accepted = await coordinator.submit(CollectionRequest(n=9, budget=Budget(wall_seconds=0.01)), "client")
    asked = asyncio.ensure_future(given(coordinator, accepted.collection_id))
    open_one = coordinator._collections[accepted.collection_id]
    while open_one.limit is None:
        open_one.changed.clear()
        await open_one.changed.wait()
    gate.set()
    assert (await asked)[0] in ([1], [1, 1]), "what ran is delivered; a slow machine begins only one of two"


def number_of(request: EpisodeRequest) -> int:
    return int(request.group_id.rpartition("-")[2])


async def test_when_enough_groups_are_kept_the_others_are_ended_and_are_no_faults(start, caplog):
    gate = asyncio.Event()

    async def play(request: EpisodeRequest) -> EpisodeSummary:
        if number_of(request) < 2:
            return scored(request)
        await gate.wait()
        fault = Fault(FaultKind.SERVICE, "Cancelled", "it was cancelled", retryable=True)
        return EpisodeSummary(request.trajectory_id, Outcome.ABORTED, "fault", None, fault)

    coordinator = await start(play)
    name, episodes, _, keep = await coordinator.submit(CollectionRequest(n=1, keep="reader"), "client")
    assert (episodes, keep) == (1, "reader")
    first = await coordinator.next_group(name)
    await coordinator.drop(name, (first.number,), "client")
    second = await coordinator.next_group(name)
    assert (second.number, second.dropped) == (1, 1)
    status = (await coordinator.status())["collections"][name]
    groups = status["groups"]
    begun = groups["begun"]
    assert 3 <= begun <= 5, "at most four may be undecided while one of two is expected to be kept"
    assert (groups["kept"], groups["undecided"], groups["let_go"], groups["most"]) == (0, begun - 1, 0, 10)
    assert (groups["dropped"], groups["dropped_in_a_row"]) == (1, 1)
    with caplog.at_level("INFO"):
        assert await coordinator.next_group(name) is None, "to ask for the next one keeps the last one"
        assert coordinator._pool.cancelled == [f"{name}-{group:05d}-000" for group in range(2, begun)]
        gate.set()
        while coordinator._scheduler.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    status = await coordinator.status()
    assert (status["collections"], status["faults"], status["finished"]) == ({}, {}, 2)
    assert "Cancelled" not in said(caplog)


@pytest.mark.parametrize("n", [4, 2])
async def test_a_budget_ends_a_filtered_collection_only_if_too_few_were_kept(start, n):
    def play(request: EpisodeRequest) -> EpisodeSummary:
        reward = float(request.sample_index) if number_of(request) else 1.0
        return dataclasses.replace(scored(request), reward=reward)

    coordinator = await start(play)
    asked = CollectionRequest(n=n, group_size=2, keep="informative", budget=Budget(episodes=4))
    accepted = await coordinator.submit(asked, "client")
    name = accepted.collection_id
    if n == 4:
        sizes, said = await given(coordinator, name)
        assert (sizes, "episodes: 4 of 4 are used" in said) == ([2], True), "the first group was dropped"
    else:
        groups = [group async for group in until_none(lambda: coordinator.next_group(name))]
        assert [group.number for group in groups] == [1]
    assert (await coordinator.status())["collections"] == {}


async def test_a_collection_that_goes_on_has_what_is_left_of_its_time(start):
    coordinator, _ = await held(start)
    accepted = await coordinator.submit(CollectionRequest(n=9, budget=Budget(wall_seconds=1000.0)), "client")
    running = coordinator._collections[accepted.collection_id]
    coordinator._budgets.closed(running)
    running.restore({}, (), dataclasses.replace(running.spent, seconds=900.0))
    coordinator._budgets.opened(running)
    assert running.timer.when() - asyncio.get_running_loop().time() <= 100.0


async def test_the_service_s_budget_ends_all_collections_and_refuses_the_next(start):
    coordinator = await start(scored, budget__episodes=4)
    first, second = [await coordinator.submit(CollectionRequest(n=9), "client") for _ in range(2)]
    for accepted in (first, second):
        assert "The service's budget is spent: episodes:" in (await given(coordinator, accepted.collection_id))[1]
    with pytest.raises(BudgetReached, match="The service's budget is spent"):
        await coordinator.submit(CollectionRequest(n=2), "client")


@pytest.mark.parametrize("over", [False, True])
async def test_a_service_ends_as_a_whole_when_its_owner_is_silent_or_its_owner_s_job_is_over(monkeypatch, caplog, over):
    lease = 600.0 if over else 0.5
    ended: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(clients, "_LOOKS", 20 * lease)
    monkeypatch.setattr(clients, "_job_is_over", lambda: over)
    monkeypatch.setattr(module, "ActorPool", Pool)
    monkeypatch.setattr(module, "Clients", lambda seconds, gone, owner: Clients(lease, gone, owner))
    monkeypatch.setattr(module.services, "end", lambda *what: loop.call_soon_threadsafe(ended.put_nowait, what))
    coordinator = Coordinator(settings(tasks__domain="mock", service__name="owned"), "owned-policy", "owner")
    service, applications = await ended.get()
    assert (service.name, applications) == ("owned", ["owned-policy"])
    assert coordinator._pool.stopped
    with pytest.raises(ServiceError, match="The service is ending"):
        await coordinator.submit(CollectionRequest(n=2), "guest")
    why = "the process that started the service is gone" if over else "its client was silent"
    assert f"WARNING Service owned ends: {why}" in said(caplog)


async def test_new_weights_of_an_endpoint_are_known_from_its_tokens_to_fleet_and_status(start):
    coordinator = await start(lambda request: scored(request, (1, 3)), None, **ENDPOINT)
    await taken(coordinator)
    assert (await coordinator.status())["weight_version"] == 3
    assert await coordinator._fleet.weight_version.remote() == 3


async def test_without_a_fleet_new_weights_of_an_endpoint_still_make_old_trajectories_late(start):
    coordinator = await start(lambda request: scored(request, (1, 3)), None, **ENDPOINT)

    async def dead(version: int) -> None:
        raise RayActorError

    coordinator._fleet = SimpleNamespace(observe=SimpleNamespace(remote=dead))
    await taken(coordinator)
    assert (await coordinator.status())["weight_version"] == 3


async def test_an_episode_that_is_played_again_because_it_is_too_old_is_counted_once(start):
    def play(request: EpisodeRequest) -> EpisodeSummary:
        version = 0 if request.attempt == 1 else 3
        return dataclasses.replace(scored(request, (version, version)), reward=float(request.attempt))

    coordinator = await start(play, service__max_staleness=0)
    collection, *_ = await coordinator.submit(CollectionRequest(n=1), "client")
    while not (await coordinator.status())["finished"]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await coordinator.policy_changed(FleetState(3))
    assert len([group async for group in until_none(lambda: coordinator.next_group(collection))]) == 1
    status = await coordinator.status()
    assert [status[name] for name in ("finished", "scored", "mean_reward")] == [1, 1, 2.0]


async def test_an_episode_that_an_update_cut_starts_again_and_what_it_spent_is_counted(start, caplog):
    begun, ended = [], asyncio.Event()

    async def play(request: EpisodeRequest) -> EpisodeSummary:
        begun.append(request.attempt)
        if request.attempt > 1:
            return scored(request, (2, 2))
        await ended.wait()
        return dataclasses.replace(
            scored(request, (0, 0)),
            outcome=Outcome.ABORTED,
            termination_reason="cancelled",
            reward=None,
            policy_tokens=7,
        )

    coordinator = await start(play, service__max_staleness=1, service__max_attempts=1)
    budget = Budget(policy_tokens=1000)
    collection, *_ = await coordinator.submit(CollectionRequest(n=1, budget=budget), "client")
    while not begun:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await coordinator.policy_changed(FleetState(2))
    assert coordinator._pool.min_versions == [{collection: 1}]
    ended.set()
    with caplog.at_level("INFO"):
        group = await coordinator.next_group(collection)
    assert [request.attempt for request in group.trajectories] == [2], "the cut one does not count as an attempt"
    running = coordinator._collections[collection]
    assert (running.collection.late, running.collection.failed, running.spending.policy_tokens) == (1, 0, 7)
    assert "starts again: after an update its oldest tokens are too old (max_staleness)" in caplog.text


async def test_an_episode_that_updates_cut_again_and_again_is_reported_with_the_remedy(start):
    def play(request: EpisodeRequest) -> EpisodeSummary:
        return dataclasses.replace(scored(request, (0, 0)), termination_reason="cancelled", reward=None)

    coordinator = await start(play, service__max_staleness=1)
    collection, *_ = await coordinator.submit(CollectionRequest(n=1), "client")
    (trajectory,) = (await coordinator.next_group(collection)).trajectories
    assert (trajectory.outcome, trajectory.reward) == (Outcome.ABORTED, None)
    assert (
        "10 updates of the weights ended it before it could be in time: raise max_staleness" in trajectory.fault.message
    )


async def test_what_the_fleet_says_is_in_the_status(start):
    coordinator = await start(scored)
    await coordinator.policy_changed(FleetState(4, DesiredState(pause="drain")))
    status = await coordinator.status()
    assert (status["weight_version"], status["paused"]) == (4, True)
    await coordinator.policy_changed(FleetState(4))
    assert not (await coordinator.status())["paused"]


async def test_episodes_that_wait_for_a_slot_are_said_to_be_held_back(start, caplog):
    coordinator, gate = await held(start)
    with caplog.at_level("INFO"):
        collection, *_ = await coordinator.submit(CollectionRequest(n=9), "client")
    assert f"INFO Collection {collection} is held back: no slot is free." in said(caplog)
    gate.set()
    await coordinator.cancel(collection)


async def test_a_fault_that_stops_every_episode_is_told_and_ends_the_collection_when_it_lasts(
    start, monkeypatch, caplog
):
    monkeypatch.setattr(breaker, "seconds_before_retry", lambda pauses: 0.01)
    bad_key = Fault(FaultKind.USER_SIMULATOR, "AuthenticationError", "bad key.", retryable=False)

    def play(request: EpisodeRequest) -> EpisodeSummary:
        return dataclasses.replace(scored(request), fault=bad_key, reward=None)

    coordinator = await start(play, service__give_up_seconds=0.1)
    with pytest.raises(ServiceError, match=r"AuthenticationError: bad key\. Check user\.model"):
        await taken(coordinator, n=9)
    lines = said(caplog)
    assert "pauses: a fault of kind user_simulator ends every episode (" in lines
    assert ": 0 of 9 episodes done, 0 failed" in lines, "they were kept"


async def test_a_task_that_kills_its_actors_is_given_up_and_named(start, caplog):
    def play(request: EpisodeRequest) -> EpisodeSummary:
        if request.trajectory_id.endswith("-00001-000"):
            raise RayActorError
        return scored(request)

    coordinator = await start(play, service__max_attempts=1, service__max_losses=4)
    groups = await taken(coordinator, n=3)
    faults = [trajectory.fault for group in groups for trajectory in group.trajectories if trajectory.attempt == 4]
    assert [(fault.error, fault.retryable) for fault in faults] == [(POISON_TASK, False)]
    assert "is quarantined: 4 attempts lost their environment actor" in said(caplog)


async def test_a_reader_that_waits_while_its_collection_is_begun_again_does_not_end_the_new_one(start):
    coordinator = await start(scored)
    coordinator._pool.user.actor_left("actor-0")  # nothing runs, so the cancellation is over at once
    first = await coordinator.submit(CollectionRequest(n=2, seed=0), "client")
    waiting = asyncio.ensure_future(coordinator.next_group(first.collection_id))
    await asyncio.sleep(0)
    again = CollectionRequest(n=2, seed=0, continues=Continuation(0, first.collection_id))
    await coordinator.submit(again, "another client")
    with pytest.raises(ServiceError, match="was cancelled"):
        await waiting
    coordinator._pool.user.actor_joined("actor-1")
    groups = [group async for group in until_none(lambda: coordinator.next_group(first.collection_id))]
    assert len(groups) == 2


async def test_a_reader_that_asks_again_gets_the_group_that_its_lost_call_waits_for(start):
    coordinator, gate = await held(start)
    accepted = await coordinator.submit(CollectionRequest(n=1), "client")
    lost = asyncio.ensure_future(coordinator.next_group(accepted.collection_id))  # nobody gets its answer
    await asyncio.sleep(0)
    asked = asyncio.ensure_future(coordinator.next_group(accepted.collection_id, (), True))
    await asyncio.sleep(0)
    gate.set()
    group = await asked
    assert len(group.trajectories) == 1
    with pytest.raises(ServiceError, match="asked for again"):
        await lost
