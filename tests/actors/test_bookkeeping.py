"""Coordinators that live one after another on one journal, and a stream that stays: nothing is lost or comes twice."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

import actors.attempt as attempt
import actors.bookkeeping as bookkeeping
import actors.coordinator as module
import actors.lending as lending
import actors.results as results
import rollout_service.collecting.stream as stream_module
from actors.coordinator import Coordinator
from actors.fleet import Fleet
from actors.pool import PoolUser
from rollout_service.cluster import Call, LostObject
from rollout_service.collecting.judging import Judge
from rollout_service.collecting.planning import Planner
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest
from rollout_service.collecting.stream import GroupStream
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config.budget import Budget
from rollout_service.errors import BudgetReached, Interrupted, ServiceError, TaskError, TooFewKept
from rollout_service.journal.entries import Delivered, Entry
from rollout_service.journal.place import PARTS
from rollout_service.policy.replicas import FleetState
from rollout_service.record.part import Part, read_part
from rollout_service.record.part_files import PartFiles
from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2.task_source import Tau2TaskSource
from tests.support.episodes import settings
from tests.support.trajectories import make_trajectory

EPISODES, SIZE = 12, 2


class Pool:
    """Stands for the actor pool: each episode is over at once, and stored."""

    def __init__(self, application: str | None, user: PoolUser) -> None:
        self.user, self.lost, self.start_error = user, 0, None

    def __len__(self) -> int:
        return 1

    async def start(self, config: Any, variables: dict[str, str]) -> None:
        self.folder = Path(config.service.journal) / PARTS
        self.variables = variables
        self.user.actor_joined("actor")

    async def adopt(self, config: Any) -> None: ...
    def fill_up(self) -> None: ...
    def complete(self) -> None: ...
    def stop(self) -> None: ...
    def end_retired(self) -> None: ...
    def cancel(self, trajectory_ids: list[str]) -> None: ...
    def cut(self, min_versions: Any) -> None: ...

    def actors(self) -> dict[str, Any]:
        return {}

    async def places(self) -> dict[str, tuple[float, str]]:
        return {}

    def run_episode(self, name: str, request: EpisodeRequest) -> tuple[Any, Any]:
        plays[request.trajectory_id] += 1
        reward = rewards(request)
        trajectory = make_trajectory(**request.identity(), reward=reward)
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "node"
        part = PartFiles(self.folder, node).write(trajectory)

        async def summary() -> EpisodeSummary:
            return EpisodeSummary(request.trajectory_id, trajectory.outcome, "user_stop", reward, None, part=part)

        return summary(), Call.of(trajectory)


plays: Counter[str] = Counter()


def rewards(request: EpisodeRequest) -> float:
    return 1.0


def rewards_that_differ_in_every_other_group(request: EpisodeRequest) -> float:
    return float(request.sample_index) if number_of(request) % 2 else 1.0


def number_of(each: EpisodeRequest | Trajectory) -> int:
    return int(each.group_id.rpartition("-")[2])


class Service:
    """The handle of a coordinator that dies and comes back."""

    def __init__(self, folder: Path, form: str, **overrides: Any) -> None:
        self.overrides = {"tasks__domain": "mock", "service__slots": 2, "service__journal": str(folder)}
        self.overrides |= {"service__journal_form": form, "service__max_buffered_groups": 8, **overrides}
        self.config = settings(**self.overrides)
        self._calls: list[concurrent.futures.Future[Any]] = []
        self.is_mute = False
        """Whether no answer arrives."""

    async def live(self) -> None:
        self.coordinator = Coordinator(self.config, None)
        fleet = Fleet(self.config, None, self)
        await self.coordinator.start({}, fleet)

    def die(self) -> None:
        """The process is gone: its lock is free, what it has not written is lost, and calls are cut off."""
        journal = self.coordinator._books._journal
        journal._lock.close()
        journal._database.owner = -1
        for name in self.coordinator._collections.copy():
            self.coordinator._scheduler.drop(name)
        for call in self._calls:
            if not call.done():
                call.set_exception(Interrupted("The coordinator was interrupted.", "Call again."))
        self._calls.clear()

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Call[Any]:
            call: concurrent.futures.Future[Any] = concurrent.futures.Future()
            self._calls.append(call)
            loop = asyncio.get_running_loop()  # a stream that is collected later makes no call
            task = loop.create_task(getattr(self.coordinator, name)(*arguments))
            task.add_done_callback(lambda task: call.done() or self.is_mute or _settle(call, task))
            return Call(call)

        return SimpleNamespace(remote=remote)

    def stream(
        self, ack: str = "auto", budget: Budget | None = None, judge: Judge | None = None, **asked: Any
    ) -> GroupStream:
        request = CollectionRequest(**{"n": EPISODES, "group_size": SIZE, "budget": budget} | asked)
        submit = functools.partial(self.submit.remote, request, "client", "submission")
        return GroupStream(self, submit, ack, "client", judge=judge)


def _settle(call: concurrent.futures.Future[Any], task: asyncio.Task[Any]) -> None:
    error = task.exception()
    call.set_exception(error) if error is not None else call.set_result(task.result())


async def living(folder: Path, form: str, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> Service:
    monkeypatch.setattr(module, "ActorPool", Pool)
    monkeypatch.setattr(attempt.ray, "put", Call.of)
    monkeypatch.setattr(results.stored_parts, "read", _read)
    monkeypatch.setattr(bookkeeping, "is_restarted", lambda: False)
    monkeypatch.setattr(bookkeeping.parts, "discard_elsewhere", lambda folder, parts: None)
    plays.clear()
    made = Service(folder, form, **overrides)
    await made.live()
    return made


@pytest.fixture(params=["sqlite", "log"])
async def service(tmp_path, monkeypatch, request) -> Service:
    return await living(tmp_path / "journal", request.param, monkeypatch)


def _read(journal: str, part: Part) -> Call[Trajectory]:
    return Call.of(read_part(Path(journal) / PARTS, part))


def ids(groups: list[list[Trajectory]]) -> list[str]:
    return [trajectory.trajectory_id for group in groups for trajectory in group]


@pytest.mark.parametrize("given", range(EPISODES // SIZE + 1))
async def test_a_stream_goes_on_after_its_coordinator_s_death_wherever_that_comes(service, given):
    stream = service.stream()
    await stream.aopen()
    groups = [await anext(stream) for _ in range(given)]
    before = set(ids(groups))
    waiting = asyncio.ensure_future(stream._next_group())  # a call is under way, or answered and not yet read
    await asyncio.sleep(0)
    service.die()
    await service.live()
    await asyncio.wait([waiting])
    groups += [group async for group in stream]
    assert len(ids(groups)) == len(set(ids(groups))) == EPISODES
    assert all(trajectory.reward == 1.0 for group in groups for trajectory in group)
    assert {plays[name] for name in before} <= {1}, "what is finished is not played again"
    await service.coordinator.stop()
    assert list((Path(service.config.service.journal) / PARTS).iterdir()) == [], "the reader has everything"


@pytest.mark.parametrize("is_written", [False, True])
async def test_a_collection_that_is_asked_for_while_its_coordinator_dies_is_begun_once(service, is_written):
    service.is_mute = True
    stream = service.stream()
    opening = asyncio.ensure_future(stream.aopen())
    await asyncio.sleep(0)
    while is_written and not service.coordinator._collections:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    service.die()
    service.is_mute = False
    await service.live()
    assert len(service.coordinator._collections) == is_written
    await opening
    assert list(service.coordinator._collections) == [stream.collection_id]
    assert (stream.episodes, stream.first_draw) == (EPISODES, 0)
    groups = [group async for group in stream]
    assert len(set(ids(groups))) == EPISODES
    assert set(ids(groups)) == set(plays), "no other collection was played"


async def test_a_group_whose_objects_went_with_the_coordinator_is_read_from_the_journal(service, monkeypatch):
    dies = iter([True])

    async def fetched(references: list[Any]) -> list[Any]:
        if next(dies, False):  # the coordinator owns the objects, and dies after its answer
            service.die()
            await service.live()
            return [LostObject(RuntimeError())] * len(references)
        return [await reference for reference in references]

    monkeypatch.setattr(stream_module, "fetched", fetched)
    groups = [group async for group in service.stream()]
    assert len(ids(groups)) == len(set(ids(groups))) == EPISODES
    assert all(trajectory.reward == 1.0 for group in groups for trajectory in group)


async def test_a_group_whose_objects_are_lost_for_good_is_given_as_such(service, monkeypatch):
    async def fetched(references: list[Any]) -> list[Any]:
        return [LostObject(RuntimeError())] * len(references)

    monkeypatch.setattr(stream_module, "fetched", fetched)
    groups = [group async for group in service.stream()]
    assert len(set(ids(groups))) == EPISODES
    assert all(trajectory.fault.retryable for group in groups for trajectory in group)


@pytest.mark.parametrize("seed", [None, 5])
async def test_an_endless_stream_goes_on_where_it_was_after_its_coordinator_s_deaths(service, seed):
    stream = service.stream(n=None, endless=True, seed=seed)
    groups = []
    for _ in range(3):
        groups += [await anext(stream) for _ in range(4)]
        service.die()
        await service.live()
    assert stream.episodes is None
    groups.sort(key=lambda group: group[0].group_id)
    assert len(ids(groups)) == len(set(ids(groups))) == 12 * SIZE
    planned = Planner(service.config, Tau2TaskSource()).plan(CollectionRequest(n=60, group_size=SIZE, seed=seed), 0)
    drawn = {request.group_id.rpartition("-")[2]: request.task for request in planned.drawing.requests}
    seeds = {request.trajectory_id.partition("-")[2]: request.seed for request in planned.drawing.requests}
    for trajectory in itertools.chain(*groups):
        assert trajectory.task == drawn[trajectory.group_id.rpartition("-")[2]]
        assert trajectory.seed == seeds[trajectory.trajectory_id.partition("-")[2]]
    status = await service.coordinator.status()
    assert status["collections"][stream.collection_id]["episodes"] is None
    await stream.aclose()
    assert service.coordinator._collections == {}
    if seed is None:
        after = service.stream(n=EPISODES)
        came = [trajectory.seed for group in [group async for group in after] for trajectory in group]
        assert not set(came) & {trajectory.seed for trajectory in itertools.chain(*groups)}, "the sequence went on"


@pytest.mark.parametrize("ack", ["auto", "manual"])
async def test_groups_that_say_nothing_are_replaced_whenever_the_coordinator_dies(service, ack, monkeypatch):
    monkeypatch.setitem(globals(), "rewards", rewards_that_differ_in_every_other_group)
    stream = service.stream(ack, n=EPISODES, keep="informative")
    groups = []
    for _ in range(3):
        groups.append(await anext(stream))
        service.die()
        await service.live()
        groups.append(await anext(stream))
        if ack == "manual":
            await stream.aack(groups[-1])
    status = (await service.coordinator.status())["collections"][stream.collection_id]
    assert status["groups"]["dropped"] >= 5
    assert status["groups"]["most"] == 10 * EPISODES // SIZE
    groups += [group async for group in stream]
    assert stream.episodes == len(ids(groups)) == len(set(ids(groups))) == EPISODES
    assert all({each.reward for each in group} == {0.0, 1.0} for group in groups)
    assert all(number_of(group[0]) % 2 for group in groups)
    for group in groups if ack == "manual" else []:
        await stream.aack(group)
    assert service.coordinator._collections == {}
    await service.coordinator.stop()
    assert list((Path(service.config.service.journal) / PARTS).iterdir()) == [], "nothing is left of what was dropped"


def is_odd(group: list[Trajectory]) -> bool:
    return number_of(group[0]) % 2 == 1


@pytest.mark.parametrize("ack", ["auto", "manual"])
async def test_a_reader_s_own_filter_keeps_what_it_wants_whenever_the_coordinator_dies(service, ack):
    dropped: list[list[Trajectory]] = []
    stream = service.stream(ack, judge=Judge(is_odd, dropped.append), keep="reader")
    groups = []
    for turn in range(EPISODES // SIZE):
        groups.append(await anext(stream))
        if ack == "manual" and turn % 2:
            await stream.aack(groups[-1])
        if turn in (0, 1, 4):
            service.die()
            await service.live()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert all(is_odd(group) for group in groups)
    assert not any(is_odd(group) for group in dropped)
    assert stream.episodes == len(set(ids(groups))) == EPISODES
    assert len(ids(dropped)) == len(set(ids(dropped))) == stream.dropped * SIZE > 0
    for group in groups if ack == "manual" else []:
        await stream.aack(group)
    assert service.coordinator._collections == {}
    await service.coordinator.stop()
    assert list((Path(service.config.service.journal) / PARTS).iterdir()) == []


async def test_what_a_filter_raises_reaches_the_caller_and_the_group_is_judged_again(service):
    failures = [ValueError("not now"), None]

    def keep(group: list[Trajectory]) -> bool:
        if (error := failures.pop(0) if failures else None) is not None:
            raise error
        return True

    stream = service.stream(judge=Judge(keep), keep="reader")
    with pytest.raises(ValueError, match="not now") as caught:
        await anext(stream)
    assert any(entry.name == "keep" for entry in caught.traceback), "its own stack is there"
    groups = [group async for group in stream]
    assert len(ids(groups)) == len(set(ids(groups))) == EPISODES, "nothing is lost"
    undecided = service.stream(judge=Judge(lambda group: None), keep="reader")
    with pytest.raises(TaskError, match=r"keep returned None for a group\. Return True or False"):
        await anext(undecided)


async def test_another_client_needs_the_function_of_a_collection_that_was_asked_for_with_one(service):
    stream = service.stream("manual", judge=Judge(is_odd), keep="reader")
    came = [await anext(stream) for _ in range(2)]
    await stream.aack(came[0])
    service.coordinator._client_is_gone("client", "it was silent")
    with pytest.raises(TaskError, match=r"was asked for with a function.*Give it again: reopen"):
        await reopened(service, stream).aopen()
    assert service.coordinator._collections[stream.collection_id].is_parked, "it is not thrown away with that client"
    again = reopened(service, stream, judge=Judge(is_odd))
    groups = [group async for group in again]
    assert again.episodes == EPISODES - SIZE
    assert sorted(ids([*groups, came[0]])) == sorted(set(ids([*groups, *came]))), "what was not acknowledged came again"
    assert all(is_odd(group) for group in groups)
    with pytest.raises(TaskError, match="without a function"):
        await service.stream(judge=Judge(is_odd)).aopen()


async def test_a_filter_that_keeps_too_little_says_so_after_what_it_kept(service, monkeypatch):
    monkeypatch.setitem(globals(), "rewards", rewards_that_differ_in_every_other_group)
    stream = service.stream(n=EPISODES, keep="informative", most_groups=7)
    groups = []
    for _ in range(3):
        groups.append(await anext(stream))
        service.die()
        await service.live()
    with pytest.raises(TooFewKept, match=r"kept 3 groups of the 6 .* dropped 4: most_groups=7 have begun.*Raise most"):
        await anext(stream)
    assert sorted(number_of(group[0]) for group in groups) == [1, 3, 5]
    await service.coordinator.acknowledge(stream.collection_id, (1, 3, 5))
    await service.coordinator.stop()
    await service.live()
    assert service.coordinator._collections == {}, "nobody waits for it any more"


async def test_only_what_was_acknowledged_is_forgotten(service):
    stream = service.stream("manual")
    groups = [await anext(stream) for _ in range(3)]
    await stream.aack(groups[1])
    service.die()
    await service.live()
    collection = service.coordinator._collections[stream.collection_id]
    [journaled] = collection.journal.recovered.collections
    assert {0, 2} <= set(journaled.delivered)
    assert journaled.acknowledged == [1]
    groups += [group async for group in stream]
    assert len(ids(groups)) == len(set(ids(groups))) == EPISODES
    for group in groups:
        await stream.aack(group)
    service.die()
    await service.live()
    assert service.coordinator._collections == {}


@pytest.mark.parametrize("dies", [False, True])
async def test_what_is_withheld_needs_no_acknowledgement(service, dies, monkeypatch):
    monkeypatch.setitem(globals(), "rewards", lambda request: None if number_of(request) < 2 else 1.0)
    stream, withheld = service.stream("manual", min_group_size=1), []
    stream.withheld = lambda group, why: withheld.append(number_of(group[0]))
    groups = []
    async for group in stream:
        groups.append(group)
        if dies and len(groups) == 1:
            service.die()
            await service.live()
    assert sorted(withheld) == [0, 1]
    assert len(ids(groups)) == len(set(ids(groups))) == EPISODES - 2 * SIZE
    for group in groups:
        await stream.aack(group)
    assert service.coordinator._collections == {}, "the reader has everything"


async def finished(service: Service, stream: GroupStream) -> None:
    """Returns when every episode of the stream's collection is done."""
    await stream.aopen()
    while service.coordinator._collections[stream.collection_id].collection.done < EPISODES:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_a_transaction_is_for_all_finished_groups_and_a_reader_does_not_wait_for_the_disk_at_each(
    service, monkeypatch
):
    stream = service.stream()
    await finished(service, stream)
    groups = [await anext(stream)]
    database, disk = service.coordinator._books._journal._database, threading.Event()
    commit = database.commit
    monkeypatch.setattr(database, "commit", lambda entries: disk.wait() and commit(entries))
    groups += [await anext(stream) for _ in range(EPISODES // SIZE - 1)]
    disk.set()
    service.die()
    await service.live()
    groups += [group async for group in stream]
    assert len(ids(groups)) == len(set(ids(groups))) == EPISODES


async def test_a_group_is_not_handed_out_before_that_is_safe(service, monkeypatch):
    stream = service.stream()
    await finished(service, stream)
    database, disk = service.coordinator._books._journal._database, threading.Event()
    commit, written = database.commit, []

    def later(entries: list[Entry]) -> list[Part]:
        disk.wait()
        written.extend(entries)
        return commit(entries)

    monkeypatch.setattr(database, "commit", later)
    waiting = asyncio.ensure_future(anext(stream))
    delivery = service.coordinator._collections[stream.collection_id].delivery
    while not delivery.given:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not waiting.done()
    disk.set()
    await waiting
    assert any(isinstance(entry, Delivered) for entry in written)


async def test_a_group_that_may_become_too_old_is_handed_out_when_its_reader_asks_for_it(service):
    await service.coordinator.stop()
    service.config = settings(**service.overrides, service__max_staleness=5)
    await service.live()
    stream = service.stream()
    await finished(service, stream)
    await anext(stream)
    assert list(service.coordinator._collections[stream.collection_id].delivery.given) == [0]


async def test_a_stream_refuses_an_acknowledgement_that_makes_no_sense(service):
    by_itself = service.stream()
    group = await anext(by_itself)
    with pytest.raises(ServiceError, match='ack="manual"'):
        await by_itself.aack(group)
    manual = service.stream("manual")
    await anext(manual)
    with pytest.raises(ServiceError, match="no group that the stream gave"):
        await manual.aack(group)


async def test_after_a_new_start_a_collection_waits_for_its_reader(service):
    stream = service.stream()
    await anext(stream)
    await service.coordinator.stop()
    played = plays.total()
    await service.live()
    status = await service.coordinator.status()
    assert list(status["collections"]) == [stream.collection_id]
    assert status["running"] == 0
    assert plays.total() == played
    assert status["journal"] == {"path": service.config.service.journal, "problem": None}
    await service.coordinator.cancel(stream.collection_id)
    service.die()
    await service.live()
    assert service.coordinator._collections == {}, "a collection that was cancelled does not come back"


async def test_a_service_that_ends_takes_no_acknowledgement_and_hands_out_nothing(service):
    stream = service.stream("manual")
    group = await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await service.coordinator.stop()
    with pytest.raises(ServiceError, match="is ending"):
        await stream.aack(group)
    with contextlib.suppress(ServiceError):  # it may have come before
        await waiting
    await service.live()
    [again] = service.coordinator._collections.values()
    assert 0 in again.journal.recovered.collections[0].delivered


def reopened(service: Service, stream: GroupStream, client: str = "another", judge: Judge | None = None) -> GroupStream:
    submit = functools.partial(service.reopen.remote, stream.collection_id, client, None, judge is not None)
    return GroupStream(service, submit, client=client, judge=judge)


@pytest.mark.parametrize("is_new_start", [False, True])
async def test_another_client_goes_on_with_a_collection_whose_client_is_gone(service, is_new_start):
    stream = service.stream("manual")
    came = [await anext(stream) for _ in range(3)]
    await stream.aack(came[1])
    if is_new_start:
        await service.coordinator.stop()
        await service.live()
    else:
        service.coordinator._client_is_gone("client", "it was silent")
    status = await service.coordinator.status()
    assert status["collections"][stream.collection_id]["parked"]
    assert "client.reopen" in status["collections"][stream.collection_id]["waits_for"]
    again = reopened(service, stream)
    await again.aopen()
    assert again.episodes == EPISODES - SIZE
    first = await anext(again)
    service.die()  # the journal knows the new reader
    await service.live()
    assert service.coordinator._collections[stream.collection_id].client == "another"
    groups = [first] + [group async for group in again]
    assert sorted(ids(groups)) == sorted(set(plays) - set(ids([came[1]])))
    assert all(trajectory.reward == 1.0 for group in groups for trajectory in group)
    assert set(plays.values()) == {1}, "nothing that was stored is played again"
    await service.coordinator.stop()
    assert list((Path(service.config.service.journal) / PARTS).iterdir()) == [], "the reader has everything"


async def test_a_client_whose_collection_was_opened_again_takes_acknowledges_and_ends_nothing_of_it(
    service, monkeypatch
):
    gate, play = asyncio.Event(), Pool.run_episode

    def held(pool: Pool, name: str, request: EpisodeRequest) -> tuple[Any, Any]:
        summary, trajectory = play(pool, name, request)

        async def later() -> EpisodeSummary:
            await gate.wait()
            return await summary

        return later(), trajectory

    monkeypatch.setattr(Pool, "run_episode", held)
    stream = service.stream()
    await stream.aopen()
    waiting = asyncio.ensure_future(anext(stream))
    while not service.coordinator._collections[stream.collection_id]._reader:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    service.coordinator._client_is_gone("client", "it was silent")
    again = reopened(service, stream)
    await again.aopen()
    with pytest.raises(ServiceError, match="was asked for again"):
        await waiting  # its call was under way, and would have taken the first group
    gate.set()
    groups = [await anext(again)]
    for call in (service.coordinator.next_group, service.coordinator.acknowledge):
        with pytest.raises(ServiceError, match="is read by client another now"):
            await call(stream.collection_id, (0,), client="client")
    await stream.aclose()
    groups += [group async for group in again]
    assert sorted(ids(groups)) == sorted(plays), "the other client has every trajectory once"
    assert set(plays.values()) == {1}


@pytest.mark.parametrize("acknowledges", [False, True])
async def test_a_collection_that_was_given_whole_is_kept_until_it_is_acknowledged(service, acknowledges):
    stream = service.stream("manual")
    groups = [group async for group in stream]
    if acknowledges:
        for group in groups:
            await stream.aack(group)
        assert service.coordinator._collections == {}
        return
    service.coordinator._client_is_gone("client", "it was silent")
    again = reopened(service, stream)
    assert sorted(ids([group async for group in again])) == sorted(ids(groups))
    assert service.coordinator._collections == {}, "this stream acknowledged by itself"
    assert set(plays.values()) == {1}


async def test_what_a_client_that_leaves_has_not_acknowledged_is_thrown_away(service):
    stream = service.stream("manual")
    assert len([group async for group in stream]) == EPISODES // SIZE
    await service.coordinator.leave("client")
    await service.coordinator.stop()
    await service.live()
    assert service.coordinator._collections == {}, "it does not come back"
    assert list((Path(service.config.service.journal) / PARTS).iterdir()) == []


async def test_a_collection_that_nobody_reads_begins_nothing_and_keeps_what_ends(service):
    stream = service.stream()
    first = await anext(stream)
    running = service.coordinator._collections[stream.collection_id]
    assert any(reference is not None for _, reference in running._results.values())
    service.coordinator._client_is_gone("client", "it was silent")
    begun = plays.total()
    while running.active:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    service.coordinator._pump()
    assert plays.total() == begun
    assert all(reference is None for _, reference in running._results.values()), "it takes no memory"
    groups = [first] + [group async for group in stream]
    assert len(set(ids(groups))) == EPISODES, "its own reader, which was merely silent, goes on as well"
    assert set(plays.values()) == {1}


async def test_a_collection_that_a_client_reads_is_not_given_to_another(service, monkeypatch):
    monkeypatch.setattr(service.coordinator._clients, "noticed_seconds", 0.1)
    stream = service.stream()
    await anext(stream)
    with pytest.raises(ServiceError, match=r"is read by client client\. Close that client first"):
        await reopened(service, stream).aopen()
    with pytest.raises(ServiceError, match="There is no collection 'none'"):
        await service.coordinator.reopen("none", "another")
    await service.coordinator.leave("client")
    with pytest.raises(ServiceError, match="There is no collection"):
        await reopened(service, stream).aopen()


@pytest.mark.parametrize("whose", ["collection", "service"])
async def test_a_budget_is_spent_once_whatever_the_number_of_coordinators(service, monkeypatch, whose):
    limit = {"episodes": 6}
    if whose == "service":
        service.config = settings(**service.overrides, budget=limit)
        await service.coordinator.stop()
        await service.live()
    stream = service.stream("manual", budget=Budget(**limit) if whose == "collection" else None)
    groups = [await anext(stream) for _ in range(2)]
    for group in groups:
        await stream.aack(group)
    monkeypatch.setattr(bookkeeping, "is_restarted", lambda: True)
    monkeypatch.setattr(module, "go_on", _nothing)
    service.die()
    await service.live()
    with pytest.raises(BudgetReached, match=f"The {whose}'s budget is spent: episodes: 6 of 6 are used"):
        groups += [group async for group in stream]
    assert len(plays) == plays.total() == 6
    await stream.aclose()


async def _nothing(*_: Any) -> None: ...


async def test_an_episode_whose_part_is_gone_is_played_again(service):
    stream = service.stream()
    await anext(stream)
    service.die()
    for path in (Path(service.config.service.journal) / PARTS).iterdir():
        path.unlink()
    await service.live()
    groups = [group async for group in stream]
    assert len(set(ids(groups))) == EPISODES - SIZE
    assert all(trajectory.reward == 1.0 for group in groups for trajectory in group)


async def test_a_restarted_coordinator_takes_weights_pause_and_secrets_from_the_fleet(service, monkeypatch):
    fleet = Fleet(service.config, None, None)
    await fleet.receive({}, {"USER_KEY": "correct horse battery"})
    await fleet.observe(7)
    local = SimpleNamespace(
        **{name: SimpleNamespace(remote=getattr(fleet, name)) for name in dir(fleet) if not name.startswith("_")}
    )
    monkeypatch.setattr(bookkeeping, "is_restarted", lambda: True)
    monkeypatch.setattr(bookkeeping.cluster, "find", lambda *arguments: local)
    monkeypatch.delenv("USER_KEY", raising=False)
    service.die()
    restarted = Coordinator(service.config, None)
    await restarted._books.until_read()
    while (await restarted.status())["state"] != "running":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert (await restarted.status())["weight_version"] == 7
    assert restarted._pool.variables == {"USER_KEY": "correct horse battery"}
    monkeypatch.delenv("USER_KEY")


async def test_a_coordinator_that_died_with_its_fleet_refuses_weights_that_are_older_than_the_trainer_s(
    service, monkeypatch
):
    stream = service.stream()
    await anext(stream)
    await service.coordinator.policy_changed(FleetState(7))
    await service.coordinator._books.durable()
    monkeypatch.setattr(bookkeeping, "is_restarted", lambda: True)
    monkeypatch.setattr(module, "go_on", _nothing)
    for version, newest in ((6, 7), (7, 7), (8, 8), (7, 8)):
        service.die()
        service.coordinator = restarted = Coordinator(service.config, None)
        await restarted.policy_changed(FleetState(version))
        starting = restarted.start({}, Fleet(service.config, None, None))
        if version == newest:
            await starting
            assert list((await restarted.status())["collections"]) == [stream.collection_id]
            await restarted._books.durable()
            continue
        with pytest.raises(ServiceError, match=f"replicas have weights of version {version}, not {newest}"):
            await starting
        with pytest.raises(ServiceError, match="Start the service again and give it the weights"):
            await restarted.submit(CollectionRequest(n=2), "client")


async def test_a_journal_that_cannot_be_used_is_the_error_of_every_call(service):
    second = Coordinator(service.config, None)
    with pytest.raises(ServiceError, match="belongs to service"):
        await second.start({}, Fleet(service.config, None, None))
    with pytest.raises(ServiceError, match="belongs to service"):
        await second.submit(CollectionRequest(n=2), "client")


async def test_a_collection_that_nobody_reads_is_thrown_away_after_its_time(service):
    stream = service.stream("manual")
    await anext(stream)
    service.coordinator._client_is_gone("client", "it was silent")
    status = (await service.coordinator.status())["collections"][stream.collection_id]
    assert 86_000 < status["kept_seconds"] <= 86_400
    assert "service.keep_collections_seconds" in status["waits_for"]
    await service.coordinator.stop()
    await service.live()
    assert list(service.coordinator._collections) == [stream.collection_id], "it waits anew, for whoever reads on"
    service.coordinator._keeping._seconds = 0.01
    running = service.coordinator._collections[stream.collection_id]
    service.coordinator._keeping.begin(running)
    while service.coordinator._collections:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert "nobody read it for service.keep_collections_seconds=0.01" in str(running.error)
    await service.coordinator.stop()
    assert list((Path(service.config.service.journal) / PARTS).iterdir()) == []
    await service.live()
    assert service.coordinator._collections == {}, "it does not come back"


async def test_a_collection_that_is_read_again_is_not_thrown_away(service):
    stream = service.stream("manual")
    await anext(stream)
    service.coordinator._client_is_gone("client", "it was silent")
    again = reopened(service, stream)
    await again.aopen()
    assert service.coordinator._collections[stream.collection_id].kept_until is None
    assert service.coordinator._keeping._timers == {}
    assert len([group async for group in again]) == EPISODES // SIZE


async def test_what_was_acknowledged_is_let_go_of_after_its_reader_has_let_go(service, monkeypatch):
    """If its owner lets go first, Ray leaves a small object in the owner's memory for good."""
    stream = service.stream("manual")
    groups = [await anext(stream) for _ in range(2)]
    collection = service.coordinator._collections[stream.collection_id]
    given = collection.delivery.given
    kept, let_go = given[0], given[1]
    for seconds, group in zip((600.0, 0.05), groups, strict=True):
        monkeypatch.setattr(lending, "_SECONDS", seconds)
        await stream.aack(group)
    assert not {0, 1} & set(given)
    assert len(kept) == SIZE
    while let_go:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def until_its_budget(stream: GroupStream) -> list[list[Trajectory]]:
    """The groups that come before the stream says that its budget is spent."""
    groups = []
    with contextlib.suppress(BudgetReached):
        while True:
            groups.append(await anext(stream))
    return groups


async def test_groups_of_a_collection_that_a_budget_ended_wait_for_their_acknowledgement(service):
    stream = service.stream("manual", Budget(episodes=2 * SIZE))
    came = await until_its_budget(stream)
    service.coordinator._client_is_gone("client", "it was silent")
    again = reopened(service, stream)
    groups = await until_its_budget(again)
    assert sorted(ids(groups)) == sorted(ids(came))
    assert service.coordinator._collections == {}, "the second reader acknowledged by itself"
    await service.coordinator.stop()
    await service.live()
    assert service.coordinator._collections == {}
    assert set(plays.values()) == {1}
