"""What the fleet orders and refuses, with replicas that answer as told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve.exceptions import RayServeException

from actors.fleet import Fleet
from deploy.replica import ReplicaState
from rollout_service.errors import ServiceError, WeightError
from rollout_service.policy.weights import BroadcastTensors, Checkpoint, Rendezvous, WeightUpdate
from tests.support.episodes import settings

UPDATE = WeightUpdate(Checkpoint("new"), 1, "drain")


class Replicas:
    """Stands for a Serve handle: `said` has what they answer, by method; else each gives its state."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.asked: list[tuple[Any, ...]] = []
        self.said: dict[str, Any] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    def broadcast(self, method: str, *arguments: Any) -> Replicas:
        self.asked.append((method, *arguments))
        return self

    async def results_async(self, return_exceptions: bool) -> list[Any]:
        method = self.asked[-1][0]
        await self.gate.wait()
        states = [ReplicaState(name, 0, paused=False, running=0, pauses=4) for name in self.names]
        return [self.said.get(method, state) for state in states]


def fleet(replicas: Replicas) -> Fleet:
    made = Fleet(settings().policy, "application")
    made.__dict__["_handle"] = replicas
    return made


async def test_weights_are_offered_to_new_replicas_once_every_old_one_has_said_that_they_fit():
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    replicas.gate.clear()
    updating = asyncio.ensure_future(ours.update(UPDATE))
    await asyncio.sleep(0)
    assert replicas.asked == [("check_update", UPDATE)]
    assert ours.orders.update is None
    replicas.gate.set()
    await updating
    assert ours.orders.update == UPDATE


@pytest.mark.parametrize("method", ["check_update", "update_weights"])
async def test_weights_that_no_replica_takes_are_offered_to_none(method):
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    replicas.said[method] = WeightError("not this model's.")
    with pytest.raises(WeightError, match="not this model's"):
        await ours.update(UPDATE)
    assert (ours.orders.update, ours.version) == (None, 0)
    replicas.said.clear()
    assert (await ours.update(UPDATE)).version == 1


async def test_a_version_that_some_replicas_may_have_is_not_given_to_other_weights():
    class Unreachable(Replicas):
        async def results_async(self, return_exceptions: bool) -> list[Any]:
            if self.asked[-1][0] == "update_weights":
                raise RayServeException("the controller is gone")
            return await super().results_async(return_exceptions)

    ours = fleet(Unreachable(["a", "b"]))
    with pytest.raises(ServiceError, match="the controller is gone"):
        await ours.update(UPDATE)
    assert (ours.orders.update, ours.version) == (UPDATE, 1)
    with pytest.raises(WeightError, match="version 1 is not newer than 1"):
        await ours.update(WeightUpdate(Checkpoint("other"), 1, "drain"))


@pytest.mark.parametrize(
    ("now", "message"), [(["a"], "1 of the group are gone"), (["a", "b", "c"], "1 of 3 started later")]
)
async def test_a_process_group_is_that_of_the_replicas_that_run(now, message):
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    await ours.join(Rendezvous("group", "127.0.0.1", 1, "gloo", 3))
    update = WeightUpdate(BroadcastTensors("group", ()), 1, "drain")
    await ours.check(update)
    replicas.names = now
    with pytest.raises(WeightError, match=message):
        await ours.update(update)


async def test_a_group_that_one_replica_could_not_join_is_left_by_all():
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    replicas.said["join"] = WeightError("it cannot reach 10.0.0.1.")
    with pytest.raises(WeightError, match="cannot reach"):
        await ours.join(Rendezvous("group", "10.0.0.1", 1, "gloo", 3))
    assert replicas.asked[-1] == ("leave", "group")


async def test_pauses_are_numbered_on_from_those_that_replicas_which_run_already_have_had():
    replicas = Replicas(["a"])
    ours = fleet(replicas)
    await ours.adopt()
    await ours.pause("in_place")
    await ours.resume()
    assert replicas.asked[1:] == [("pause", "in_place", 5), ("resume", 6)]
    assert (ours.orders.pause, ours.orders.pauses) == (None, 6)
