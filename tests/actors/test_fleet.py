"""What the fleet asks of replicas, refuses, and tells the coordinator, with replicas that answer as told."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

import actors.fleet as module
import actors.restart as restart
from actors.fleet import Fleet
from rollout_service.cluster import Call
from rollout_service.errors import ServiceError, WeightError
from rollout_service.metrics.text import flat
from rollout_service.policy.nccl import NcclSettings
from rollout_service.policy.replicas import Fit, FleetState, ReplicaState
from rollout_service.policy.weight_history import Names
from rollout_service.policy.weights import (
    BroadcastTensors,
    Bucket,
    Checkpoint,
    GroupTerms,
    Layers,
    Rendezvous,
    StoredTensors,
    TensorSpec,
    WeightSource,
    WeightUpdate,
)
from tests.support.episodes import settings

UPDATE = WeightUpdate(Checkpoint("new"), 1, "drain")


class Replicas:
    """Stands for a Serve handle: `said` has what they answer, by method, or by method and name; else each gives its
    state. `without` names those that are skipped by a method, as Serve skips one that has died."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.asked: list[tuple[Any, ...]] = []
        self.said: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.serves: dict[str, str] = {}
        self.paused: set[str] = set()
        """Those that were paused last; the others missed that order."""
        self.covered: Names = None
        """The parameters that an update has, as they say."""
        self.without: dict[str, list[str]] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    def broadcast(self, method: str, *arguments: Any) -> Replicas:
        self.asked.append((method, *arguments))
        return self

    async def results_async(self, return_exceptions: bool) -> list[Any]:
        method = self.asked[-1][0]
        await self.gate.wait()
        names = [name for name in self.names if name not in self.without.get(method, ())]
        states = {
            name: ReplicaState(
                name,
                self.versions.get(name, 0),
                paused=name in self.paused,
                running=0,
                pauses=4 if name in self.paused or not self.paused else 3,
                serves=self.serves.get(name, ""),
            )
            for name in names
        }
        if method == "check_update":
            states = {name: Fit(state, self.covered) for name, state in states.items()}
        said = self.said.get(method, states)
        return [said[name] if isinstance(said, dict) else said for name in names]


class Coordinator:
    """Stands for a coordinator's handle: `told` has what it was told, and what each replica had been asked by then."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.told: list[tuple[int, bool, list[str]]] = []
        self.policy_changed = SimpleNamespace(remote=self._policy_changed)
        self.fleet_state = SimpleNamespace(remote=lambda: Call.of(self.state))
        self.gone = False
        self.state: FleetState | None = None

    async def _policy_changed(self, state: FleetState) -> None:
        if self.gone:
            raise RayActorError
        self.state = state
        self.told.append(
            (state.version, state.desired.pause is not None, [method for method, *_ in self.replicas.asked])
        )


def fleet(replicas: Replicas, coordinator: Coordinator | None = None) -> Fleet:
    made = Fleet(settings(), "application", coordinator)
    made._handle = replicas
    return made


async def test_weights_are_offered_to_new_replicas_once_every_old_one_has_said_that_they_fit():
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    replicas.gate.clear()
    updating = asyncio.ensure_future(ours.update_weights(UPDATE))
    await asyncio.sleep(0)
    assert replicas.asked == [("check_update", UPDATE)]
    assert ours.desired.update is None
    replicas.gate.set()
    await updating
    assert ours.desired.update == UPDATE


@pytest.mark.parametrize("method", ["check_update", "update_weights"])
async def test_weights_that_no_replica_takes_are_offered_to_none(method):
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    replicas.said[method] = WeightError("not this model's.")
    with pytest.raises(WeightError, match="not this model's"):
        await ours.update_weights(UPDATE)
    assert (ours.desired.update, ours.version) == (None, 0)
    replicas.said.clear()
    assert (await ours.update_weights(UPDATE)).version == 1


async def test_what_a_replica_said_when_it_failed_shows_no_secret():
    replicas = Replicas(["a", "b"])
    replicas.said["update_weights"] = {
        "a": ReplicaState("a", 1, paused=False, running=0, pauses=0),
        "b": ValueError("http://bob:pass@host said\nAuthorization: Bearer correct-horse"),
    }
    report = await fleet(replicas).update_weights(UPDATE)
    assert report.lost == ["ValueError: Authorization: [redacted]"]


async def test_a_version_that_some_replicas_may_have_is_not_given_to_other_weights():
    class Unreachable(Replicas):
        async def results_async(self, return_exceptions: bool) -> list[Any]:
            if self.asked[-1][0] == "update_weights":
                raise RayServeException("the controller is gone")
            return await super().results_async(return_exceptions)

    ours = fleet(Unreachable(["a", "b"]))
    with pytest.raises(ServiceError, match="the controller is gone"):
        await ours.update_weights(UPDATE)
    assert (ours.desired.update, ours.version) == (UPDATE, 1)
    with pytest.raises(WeightError, match="version 1 is not newer than 1"):
        await ours.update_weights(WeightUpdate(Checkpoint("other"), 1, "drain"))


async def test_a_version_that_a_replica_serves_counts_although_the_broken_group_can_not_be_left():
    class Unreachable(Replicas):
        async def results_async(self, return_exceptions: bool) -> list[Any]:
            if self.asked[-1][0] == "leave":
                raise RayServeException("the controller is gone")
            return await super().results_async(return_exceptions)

    replicas = Unreachable(["a", "b"])
    coordinator = Coordinator(replicas)
    ours = fleet(replicas, coordinator)
    await ours.join_group(Rendezvous("group", "127.0.0.1", 1, "gloo", 3))
    served = ReplicaState("a", 1, paused=False, running=0, pauses=0)
    replicas.said["update_weights"] = {"a": served, "b": WeightError("the tensors did not all come.")}
    report = await ours.update_weights(WeightUpdate(BroadcastTensors("group", ()), 1, "drain"))
    assert (report.version, report.replicas, len(report.lost)) == (1, [served], 1)
    assert (ours.version, coordinator.state.version) == (1, 1)


def part(*names: str) -> StoredTensors:
    return StoredTensors(tuple(Bucket((TensorSpec(name, "int8", (1,)),), None) for name in names))


async def given(ours: Fleet, replicas: Replicas, version: int, source: WeightSource, *names: str) -> None:
    """Update to these parameters, to all if none is named."""
    replicas.covered = frozenset(names) if names else None
    await ours.update_weights(WeightUpdate(source, version, "drain"))
    replicas.versions = dict.fromkeys(replicas.names, version)


async def test_new_replicas_are_offered_what_was_sent_since_the_last_whole_set_in_order():
    replicas = Replicas(["a"])
    ours = fleet(replicas)
    await given(ours, replicas, 1, part("p", "q"), "p", "q")
    await given(ours, replicas, 2, Checkpoint("/whole"))
    await given(ours, replicas, 3, part("p"), "p")
    await given(ours, replicas, 4, part("q"), "q")
    whole = Layers((Checkpoint("/whole"), part("p"), part("q")))
    assert ours.desired.update == WeightUpdate(whole, 4, "drain")
    await given(ours, replicas, 5, part("p", "q"), "p", "q")
    assert ours.desired.update == WeightUpdate(Layers((Checkpoint("/whole"), part("p", "q"))), 5, "drain")
    await given(ours, replicas, 6, part("p", "q", "r"))
    assert ours.desired.update == WeightUpdate(part("p", "q", "r"), 6, "drain")


async def test_a_part_goes_only_over_the_weights_that_it_was_made_from():
    replicas = Replicas(["a"])
    ours = fleet(replicas)
    await given(ours, replicas, 1, part("p"), "p")
    await given(ours, replicas, 2, part("q"), "q")
    await given(ours, replicas, 3, part("p", "q"), "p", "q")
    sent = [arguments[0] for method, *arguments in replicas.asked if method == "update_weights"]
    assert [update.after for update in sent] == [None, 1, None]


async def test_a_part_after_a_broadcast_is_offered_to_no_replica_that_has_not_had_that():
    replicas = Replicas(["a"])
    ours = fleet(replicas)
    await ours.join_group(Rendezvous("group", "127.0.0.1", 1, "gloo", 2))
    await given(ours, replicas, 1, part("p", "q"))
    await given(ours, replicas, 2, BroadcastTensors("group", ()), "p")
    await given(ours, replicas, 3, part("q"), "q")
    assert ours.desired.update == WeightUpdate(part("p", "q"), 1, "drain"), "a later replica says version 1, and has it"
    await given(ours, replicas, 4, part("p"), "p")
    assert ours.desired.update == WeightUpdate(Layers((part("q"), part("p"))), 4, "drain")


async def test_a_broadcast_of_a_part_is_refused_while_a_replica_of_the_group_has_older_weights():
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    await ours.join_group(Rendezvous("group", "127.0.0.1", 1, "gloo", 3))
    await given(ours, replicas, 1, part("p"), "p")
    replicas.versions["b"] = 0
    with pytest.raises(WeightError, match=r"Replica b has weights of version 0, not 1.*Send all parameters"):
        await given(ours, replicas, 2, BroadcastTensors("group", ()), "q")
    await given(ours, replicas, 2, BroadcastTensors("group", ()), "p")
    assert ours.version == 2


async def test_over_weights_that_others_gave_no_part_is_offered_to_new_replicas():
    replicas = Replicas(["a"])
    ours = fleet(replicas)
    replicas.versions["a"] = 5
    await ours.adopt_replicas()
    await given(ours, replicas, 6, part("p"), "p")
    assert ours.desired.update is None
    await given(ours, replicas, 7, Checkpoint("/whole"))
    assert ours.desired.update == WeightUpdate(Checkpoint("/whole"), 7, "drain")


@pytest.mark.parametrize(
    ("now", "message"),
    [(["a"], "run: b died"), (["a", "b", "c"], "run: c started later"), (["c"], "a died; b died; c")],
)
async def test_a_process_group_is_that_of_the_replicas_that_run(now, message):
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    await ours.join_group(Rendezvous("group", "127.0.0.1", 1, "gloo", 3))
    update = WeightUpdate(BroadcastTensors("group", ()), 1, "drain")
    await ours.check_update(update)
    replicas.names = now
    with pytest.raises(WeightError, match=message):
        await ours.update_weights(update)


async def test_a_group_of_another_size_than_the_replicas_make_it_is_refused_before_anyone_joins():
    replicas = Replicas(["a", "b"])
    with pytest.raises(WeightError, match=r"has 4 ranks; the trainer and 2 replicas of 1 processes make 3.*again"):
        await fleet(replicas).join_group(Rendezvous("group", "10.0.0.1", 1, "gloo", 4))
    assert [method for method, *_ in replicas.asked] == ["state"]


async def refused_group(replicas: Replicas, message: str) -> None:
    """Making a group fails with this message, and all leave the group."""
    with pytest.raises(WeightError, match=message):
        await fleet(replicas).join_group(Rendezvous("group", "10.0.0.1", 1, "gloo", 3))
    assert replicas.asked[-1] == ("leave", "group")


async def test_a_group_that_one_replica_could_not_join_is_left_by_all():
    replicas = Replicas(["a", "b"])
    replicas.said["join"] = WeightError("it cannot reach 10.0.0.1.")
    await refused_group(replicas, "cannot reach")


async def test_a_replica_that_dies_while_a_group_is_made_is_named_and_the_group_left_by_the_others():
    replicas = Replicas(["a", "b"])
    replicas.without["join"] = ["b"]
    await refused_group(replicas, "b died meanwhile")


async def test_replicas_of_a_group_that_are_gone_are_named():
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    await ours.join_group(Rendezvous("group", "127.0.0.1", 1, "gloo", 3))
    assert await ours.absent("group") == []
    replicas.names = ["a", "c"]
    assert await ours.absent("group") == ["b died"]
    replicas.said["state"] = RayActorError()
    assert await ours.absent("group") == ["a died", "b died"]


async def test_a_replica_that_cannot_use_its_group_any_more_is_named_with_the_reason_and_the_others_leave_it():
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    await ours.join_group(Rendezvous("group", "127.0.0.1", 1, "gloo", 3))
    there = {name: ReplicaState(name, 0, paused=False, running=0, pauses=0) for name in "ab"}
    replicas.said["update_weights"] = {"a": there["a"], "b": WeightError("the tensors did not all come.")}
    update = WeightUpdate(BroadcastTensors("group", ()), 1, "drain")
    report = await ours.update_weights(update)
    assert report.lost == ["WeightError: the tensors did not all come."]
    assert replicas.asked[-1] == ("leave", "group"), "also where the trainer is dead and cannot say so"
    there["b"] = replace(there["b"], lost_group=("group", "the tensors did not all come."))
    replicas.said["state"] = there
    assert await ours.absent("group") == ["b left it: the tensors did not all come."]
    replicas.said["check_update"] = {name: Fit(state, None) for name, state in there.items()}
    with pytest.raises(WeightError, match=r"b left it: the tensors did not all come.*Close the group and make another"):
        await ours.check_update(replace(update, version=2))


async def test_a_group_has_the_trainer_and_all_replicas_who_say_how_nccl_is_set_up():
    replicas = Replicas(["a", "b"])
    zero, unset = NcclSettings("host", {"NCCL_CUMEM_ENABLE": "0"}), NcclSettings("host", {})
    replicas.said["nccl"] = {"a": zero, "b": unset}
    assert await fleet(replicas).group_terms() == GroupTerms(3, (zero, unset)), "a gloo group does not mind"


async def test_pauses_are_numbered_on_from_those_that_replicas_which_run_already_have_had():
    replicas = Replicas(["a"])
    ours = fleet(replicas)
    await ours.adopt_replicas()
    await ours.pause("in_place")
    await ours.resume()
    assert replicas.asked[1:] == [("pause", "in_place", 5), ("resume", 6)]
    assert (ours.desired.pause, ours.desired.pauses) == (None, 6)


async def test_the_coordinator_knows_of_a_version_before_the_update_returns_and_of_a_pause_before_the_replicas():
    replicas = Replicas(["a"])
    coordinator = Coordinator(replicas)
    ours = fleet(replicas, coordinator)
    await ours.update_weights(UPDATE)
    assert coordinator.told == [(1, False, ["check_update", "update_weights"])]
    coordinator.told.clear()
    replicas.asked.clear()
    await ours.pause("drain")
    await ours.resume()
    assert coordinator.told == [(1, True, []), (1, False, ["pause"])]


async def test_an_endpoint_s_newer_version_is_taken_over_and_told_once():
    replicas = Replicas([])
    coordinator = Coordinator(replicas)
    ours = fleet(replicas, coordinator)
    for version in (3, 3, 2):
        await ours.observe(version)
    assert await ours.weight_version() == 3
    assert coordinator.told == [(3, False, [])]


async def test_a_fleet_that_died_goes_on_with_what_the_coordinator_kept_of_it(monkeypatch):
    replicas = Replicas(["a"])
    coordinator = Coordinator(replicas)
    replicas.covered = frozenset({"some"})
    config = settings(service__journal="/a/journal")
    ours = Fleet(config, "application", coordinator)
    ours._handle = replicas
    await ours.receive({"REPLICAS_KEY": "correct horse"}, {"USER_KEY": "battery staple"})
    await ours.update_weights(UPDATE)
    await ours.pause("drain")
    assert "correct horse" not in repr(coordinator.state), "secrets are not shown"
    monkeypatch.setattr(module, "is_restarted", lambda: True)
    monkeypatch.delenv("REPLICAS_KEY")
    again = await asyncio.to_thread(Fleet, config, "application", coordinator)
    assert await again.state() == await ours.state()
    assert again.desired.update == replace(UPDATE, after=None)
    assert await again.replica_variables() == {"REPLICAS_KEY": "correct horse"}
    assert (await again.state()).episode_variables == {"USER_KEY": "battery staple"}
    assert os.environ["REPLICAS_KEY"] == "correct horse"
    monkeypatch.delenv("REPLICAS_KEY")


async def test_a_fleet_that_died_with_its_coordinator_waits_for_the_replicas_and_goes_on_with_what_they_serve(
    monkeypatch,
):
    monkeypatch.setattr(module, "is_restarted", lambda: True)
    monkeypatch.setattr(restart, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("JUDGE_KEY", "battery staple")
    config = settings(service__journal="/a/journal", evaluation__judge={"model": "m", "api_key_var": "JUDGE_KEY"})
    replicas = Replicas([])
    ours = await asyncio.to_thread(Fleet, config, "application", Coordinator(replicas))
    ours._handle = replicas
    asked = asyncio.ensure_future(ours.state())
    while len(replicas.asked) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not asked.done(), "without a replica nobody knows the weights"
    replicas.names, replicas.versions = ["a", "b"], {"a": 7}
    state = await asked
    assert (state.version, state.desired.pauses) == (7, 4)
    assert state.episode_variables == {"JUDGE_KEY": "battery staple"}, "the node's environment has the secrets"


async def test_a_fleet_that_died_with_its_coordinator_answers_nobody_before_it_knows_the_weights(monkeypatch):
    monkeypatch.setattr(module, "is_restarted", lambda: True)
    monkeypatch.setattr(restart, "_PAUSE_SECONDS", 0.0)
    replicas = Replicas([])
    ours = await asyncio.to_thread(Fleet, settings(service__journal="/a"), "application", Coordinator(replicas))
    ours._handle = replicas
    calls = [ours.state(), ours.weight_version(), ours.pause("drain"), ours.state()]
    asked = [asyncio.ensure_future(call) for call in calls]
    update = asyncio.ensure_future(ours.update_weights(replace(UPDATE, version=5)))
    while len(replicas.asked) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not any(each.done() for each in [*asked, update])
    assert {method for method, *_ in replicas.asked} == {"state"}
    replicas.names, replicas.versions = ["a"], {"a": 7}
    first, version, _, second = await asyncio.gather(*asked)
    assert (first.version, version, second.version) == (7, 7, 7)
    assert ours.desired.pauses == 5, "replicas at 4 would not heed a lower number"
    with pytest.raises(WeightError, match="5 is not newer than 7"):
        await update


async def test_replicas_that_were_paused_when_their_fleet_died_are_known_to_be_and_can_be_resumed():
    replicas = Replicas(["a", "b"])
    replicas.paused = {"b"}
    coordinator = Coordinator(replicas)
    ours = fleet(replicas, coordinator)
    await ours.adopt_replicas()
    assert (ours.desired.pause, ours.desired.pauses) == ("drain", 4)
    await ours.resume()
    assert replicas.asked[-1] == ("resume", 5)
    assert [paused for _, paused, _ in coordinator.told] == [True, False]


async def test_a_fleet_that_could_not_ask_the_replicas_asks_again(monkeypatch):
    monkeypatch.setattr(module, "is_restarted", lambda: True)
    monkeypatch.setattr(restart, "_BACK_SECONDS", -1.0)
    replicas = Replicas([])
    ours = await asyncio.to_thread(Fleet, settings(service__journal="/a"), "application", Coordinator(replicas))
    ours._handle = replicas
    for _ in range(2):
        with pytest.raises(ServiceError, match="No policy replica answers"):
            await ours.state()
    replicas.names, replicas.versions = ["a"], {"a": 7}
    assert (await ours.state()).version == 7


async def test_without_a_coordinator_weights_are_still_updated():
    replicas = Replicas(["a"])
    coordinator = Coordinator(replicas)
    coordinator.gone = True
    assert (await fleet(replicas, coordinator).update_weights(UPDATE)).version == 1


async def test_a_service_without_replicas_of_its_own_refuses_a_pause_and_is_not_taken_for_paused():
    coordinator = Coordinator(Replicas([]))
    there = {"policy__engine": "http", "policy__url": "http://127.0.0.1:1", "policy__tokenizer": "t"}
    ours = Fleet(settings(**there), None, coordinator)
    with pytest.raises(WeightError, match="served by others"):
        await ours.pause("drain")
    assert (ours.desired.pause, coordinator.told, await ours.replicas()) == (None, [], [])


async def test_a_replica_that_asks_for_its_variables_early_gets_them_when_they_come():
    ours = fleet(Replicas([]))
    asked = asyncio.ensure_future(ours.replica_variables())
    await asyncio.sleep(0)
    assert not asked.done()
    await ours.receive({}, {})
    assert await asked == {}


async def test_updates_and_pauses_are_logged_and_counted_with_what_became_of_them(caplog):
    replicas = Replicas(["a", "b"])
    ours = fleet(replicas)
    with caplog.at_level("INFO"):
        await ours.update_weights(UPDATE)
        await ours.pause("drain")
        await ours.resume()
        with pytest.raises(WeightError):
            await ours.update_weights(UPDATE)
        replicas.said["check_update"] = WeightError("not this model's.")
        with pytest.raises(WeightError):
            await ours.update_weights(replace(UPDATE, version=2))
    said = [re.sub(r"\d+\.\d s", "T s", record.getMessage()) for record in caplog.records]
    assert said == [
        "Weights of version 1 are served by 2 replicas after T s (drain).",
        "Paused (drain) until resume; replicas: 2.",
        "Resumed; replicas: 2.",
        "Weight update to version 2 failed after T s: not this model's.",
    ]
    told = flat(await ours.metrics())
    assert [told[f"weight_updates_total/drain/{result}"] for result in ("loaded", "failed")] == [1, 1]
    assert told["weight_update_seconds/drain/count"] == 1


async def test_replicas_of_another_model_are_not_taken_over_under_the_name_of_this_one():
    replicas = Replicas(["a", "b"])
    replicas.serves = {"a": "scripted", "b": "scripted"}
    await fleet(replicas).adopt_replicas()
    replicas.serves["b"] = "/models/other"
    with pytest.raises(ServiceError, match=r"the replicas of 'application' serve /models/other, not scripted"):
        await fleet(replicas).adopt_replicas()
