"""Collections whose sampler learns or is told, on a real coordinator with a journal, within the cluster and through the
gateway. Their episodes are over at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

import tests.actors.test_bookkeeping as bookkeeping
import tests.deploy.test_gateway_reopen as gateway_reopen
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest
from rollout_service.errors import TaskError
from rollout_service.record.trajectory import Trajectory
from rollout_service.sampler_client import SamplerClient
from rollout_service.tau2 import tasks

behind = gateway_reopen.behind  # its fixture

NAMES = [task.task_id for task in tasks.references("mock")]
SOLVED, MIXED = set(NAMES[:5]), set(NAMES[5:8])
"""Tasks that are passed always, and in half of the episodes. The last one is never passed."""

PASS_RATE = CollectionRequest(sampler="pass_rate")


@pytest.fixture
async def service(tmp_path, monkeypatch) -> bookkeeping.Service:
    """Few groups are played ahead of the reader, and no file is synced."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    return await bookkeeping.living(tmp_path / "journal", "sqlite", monkeypatch, service__max_buffered_groups=2)


@pytest.fixture(autouse=True)
def rewards(monkeypatch) -> None:
    def reward(request: EpisodeRequest) -> float:
        task = request.task.task_id
        return float(task in SOLVED or (task in MIXED and request.sample_index % 2))

    monkeypatch.setattr(bookkeeping, "rewards", reward)


def drawn(groups: Iterable[list[Trajectory]]) -> Counter[str]:
    return Counter(group[0].task.task_id for group in groups)


@pytest.mark.parametrize("seed", [None, 3])
async def test_an_endless_stream_learns_which_tasks_are_passed_sometimes_and_knows_it_after_its_coordinator_s_death(
    service, seed
):
    stream = service.stream(n=None, endless=True, group_size=8, sampler="pass_rate", seed=seed)
    came = drawn([await anext(stream) for _ in range(20)])

    async def buckets() -> dict[str, int]:
        facts = (await service.coordinator.status())["collections"][stream.collection_id]["sampler"]
        assert facts["sampler"] == "pass_rate"
        assert facts["drawn"] >= 20
        return dict(facts["buckets"])

    before = await buckets()
    assert before["always"] + before["never"] >= 4
    assert before["medium"] >= 2
    service.die()
    await service.live()
    after = await buckets()
    assert after["always"] >= len(came.keys() & SOLVED), "whatever was handed out was learned from before"
    assert after["medium"] >= len(came.keys() & MIXED)
    counts = drawn([await anext(stream) for _ in range(30)])
    assert sum(counts[name] for name in MIXED) > 15
    await stream.aclose()


async def test_collections_of_one_selection_share_what_is_learned_and_those_with_a_seed_do_not(service):
    [_ async for _ in service.stream(n=160, group_size=8, sampler="pass_rate")]
    state = await service.coordinator.sampler(PASS_RATE)
    assert state["drawn"] == 20
    assert all(passes == 0 or failures == 0 or passes == failures for passes, failures in state["tasks"].values())
    own = service.stream(n=8, group_size=8, sampler="pass_rate", seed=1)
    [_ async for _ in own]
    assert await service.coordinator.sampler(PASS_RATE) == state
    counts = drawn([group async for group in service.stream(n=160, group_size=8, sampler="pass_rate")])
    assert sum(counts[name] for name in MIXED) > 10


async def test_groups_that_a_filter_drops_are_learned_from(service):
    stream = service.stream(n=80, group_size=8, sampler="pass_rate", keep="informative")
    assert drawn([group async for group in stream]).keys() <= MIXED
    known = (await service.coordinator.sampler(PASS_RATE))["tasks"]
    assert [name for name, counts in known.items() if 0 in counts], "tasks whose groups were dropped"


async def test_episodes_without_a_reward_teach_nothing(service, monkeypatch):
    monkeypatch.setattr(bookkeeping, "rewards", lambda request: None)
    [_ async for _ in service.stream(n=80, group_size=8, sampler="pass_rate")]
    assert await service.coordinator.sampler(PASS_RATE) == {"sampler": "pass_rate", "drawn": 10, "tasks": {}}


async def test_a_state_that_a_trainer_kept_is_taken_in_and_outlives_the_coordinator(service):
    [_ async for _ in service.stream(n=80, group_size=8, sampler="pass_rate")]
    kept = json.loads(json.dumps(await service.coordinator.sampler(PASS_RATE)))
    [_ async for _ in service.stream(n=80, group_size=8, sampler="pass_rate")]
    assert await service.coordinator.sampler(PASS_RATE) != kept
    assert await service.coordinator.sampler(PASS_RATE, kept) == kept
    service.die()
    await service.live()
    assert await service.coordinator.sampler(PASS_RATE) == kept


async def test_weights_change_what_a_running_stream_draws_and_outlive_its_coordinator(service):
    weighted = CollectionRequest(sampler="weighted")
    stream = service.stream(n=None, endless=True, sampler="weighted")
    assert len(drawn([await anext(stream) for _ in range(20)])) > 3
    only = {f"mock/{name}": float(name == NAMES[-1]) for name in NAMES}
    await service.coordinator.sampler(weighted, None, only)
    later = [await anext(stream) for _ in range(30)]  # at first what had begun before
    service.die()
    await service.live()
    later += [await anext(stream) for _ in range(10)]
    assert set(drawn(later[-20:])) == {NAMES[-1]}
    assert (await service.coordinator.sampler(weighted))["weights"] == only
    await stream.aclose()


class Client(SamplerClient):
    """A trainer's client of the service, without what starts one."""

    def __init__(self, service: bookkeeping.Service) -> None:
        self._coordinator, self._settings, self.config = service, service.config, service.config


async def test_a_trainer_s_client_reaches_the_samplers_by_their_selection_and_checks_its_arguments(service):
    client = Client(service)
    [_ async for _ in service.stream(n=80, group_size=8, sampler="pass_rate")]
    state = await client.asampler_state(sampler="pass_rate")
    assert state == await service.coordinator.sampler(PASS_RATE)
    assert (await client.asampler_state(sampler="pass_rate", domain={"mock": 1}))["tasks"] == {}, "another selection"
    await client.arestore_sampler({**state, "tasks": {}}, sampler="pass_rate")
    assert await client.asampler_state(sampler="pass_rate") == {**state, "tasks": {}}
    await client.aset_task_weights({"mock/create_task_1": 2}, sampler="weighted")
    assert (await client.asampler_state(sampler="weighted"))["weights"] == {"mock/create_task_1": 2.0}
    with pytest.raises(TaskError, match=r"An argument is 'n'\. Choose one of domain, split"):
        await client.asampler_state(n=4)
    with pytest.raises(TaskError, match=r"state is 'x'\. Give what sampler_state"):
        await client.arestore_sampler("x", sampler="pass_rate")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="the weight of mock is -1"):
        await client.aset_task_weights({"mock": -1}, sampler="weighted")
    with pytest.raises(TaskError, match=r"the selection's sampler is uniform.*sampler=\"weighted\""):
        await client.aset_task_weights({"mock": 1})


async def test_what_a_sampler_cannot_be_is_refused_and_changes_nothing(service):
    async def refused(request: CollectionRequest, state: Any = None, weights: Any = None) -> str:
        with pytest.raises(TaskError) as caught:
            await service.coordinator.sampler(request, state, weights)
        return str(caught.value)

    weighted = CollectionRequest(sampler="weighted")
    before = await service.coordinator.sampler(weighted, None, {"mock/impossible_task_1": 2.0})
    unknown = await refused(weighted, None, {"mock/nothing": 1.0})
    assert "there is no domain or task 'mock/nothing'" in unknown
    assert "such as mock/create_task_1" in unknown
    assert "every domain has weight 0" in await refused(weighted, None, {"mock": 0.0})
    assert "sampler is pass_rate" in await refused(PASS_RATE, None, {"mock": 1.0})
    assert "is that of sampler 'weighted', not of pass_rate" in await refused(PASS_RATE, before)
    both = {"sampler": "weighted", "drawn": 5, "weights": {}}
    assert "no domain or task 'x'" in await refused(weighted, both, {"x": 1.0})
    assert await service.coordinator.sampler(weighted) == before


async def test_a_trainer_outside_the_cluster_takes_the_state_puts_it_in_and_sets_weights(behind):
    remote, inside = behind.client("trainer"), behind.service.coordinator
    state = {"sampler": "pass_rate", "drawn": 7, "tasks": {"mock/create_task_1": [0.0, 9.5]}}
    assert await remote.sampler.remote(PASS_RATE, state, None) == state
    assert await remote.sampler.remote(PASS_RATE, None, None) == state == await inside.sampler(PASS_RATE)
    weighted = CollectionRequest(sampler="weighted", domain={"mock": 1.0})
    found = await remote.sampler.remote(weighted, None, {"mock/create_task_1": 0.5})
    assert found == {"sampler": "weighted", "drawn": 0, "weights": {"mock/create_task_1": 0.5}}
    with pytest.raises(TaskError, match=r"no domain or task 'retail'.*Name a domain \(mock\)"):
        await remote.sampler.remote(weighted, None, {"retail": 1.0})
