"""What a replica does when its orders come late, twice or half way. Its engine is a stand-in that fails on demand."""

from __future__ import annotations

import asyncio
import functools
import re
import traceback
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from deploy import membership, process_groups
from deploy import replica as module
from deploy.replica import PolicyReplica
from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeFault, FaultKind, ServiceError, WeightError, last_cause
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.policy.replicas import DesiredState
from rollout_service.policy.weights import (
    BroadcastTensors,
    Bucket,
    Checkpoint,
    Rendezvous,
    StoredTensors,
    WeightUpdate,
)
from rollout_service.redaction import remember
from tests.support.episodes import settings

PROMPT = np.asarray([1, 2], dtype=np.int32)


class Engine:
    """Samples one token at once; loading fails with `error`."""

    connects = False

    def __init__(self) -> None:
        self.version = 3
        self.error: Exception | None = None
        self.loaded: list[Any] = []
        self.running = self.most = 0
        self.leaves = True
        """Whether it can leave a process group."""
        self.stages = False
        """Whether it waits for the trainer's tensors while turns run; otherwise it does while they are stopped."""
        self.waiting = asyncio.Event()
        """Set while it waits for the trainer's tensors."""
        self.others = asyncio.Event()
        """Set once the other ranks of a process group have come."""

    async def generate(self, input_ids, sampling, info) -> Generation:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        token = np.asarray([7], dtype=np.int32)
        return Generation(token, np.zeros(1, np.float32), np.full(1, self.version, np.int32), "stop")

    def check(self, source) -> None:
        if isinstance(source, Checkpoint) and source.path == "gone":
            raise WeightError("there is no folder gone.")

    async def stage(self, source) -> Any:
        if isinstance(source, BroadcastTensors) and self.stages:
            self.waiting.set()
            await self.others.wait()
        return source

    async def load(self, staged, version, *, keep_cache) -> None:
        self.loaded.append(staged)
        if isinstance(staged, BroadcastTensors):
            self.waiting.set()
            await self.others.wait()
        if self.error is not None:
            raise self.error
        self.version = version

    async def join(self, rendezvous, rank) -> None:
        await self.others.wait()

    async def leave(self, group) -> None:
        if not self.leaves:
            await asyncio.Event().wait()

    def interrupt(self) -> None: ...
    def check_freeze(self) -> None: ...
    async def freeze(self) -> None: ...
    async def thaw(self) -> None: ...
    def check_health(self) -> None: ...
    def occupancy(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def engine(monkeypatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(module.factory, "make", lambda config, phases: made)
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    monkeypatch.setattr(module.serve, "get_replica_context", lambda: context)
    return made


@pytest.fixture
def ended(monkeypatch) -> asyncio.Event:
    """Set when a replica ends itself."""
    event = asyncio.Event()
    monkeypatch.setattr(module, "_EXIT_SECONDS", 0.01)
    monkeypatch.setattr(PolicyReplica, "_end", lambda self: event.set())
    return event


async def started(monkeypatch, desired: DesiredState | None = None) -> PolicyReplica:
    monkeypatch.setattr(module.fleet_link, "desired_state", lambda config: desired or DesiredState())
    replica = PolicyReplica.__new__(PolicyReplica)
    await replica.__init__(settings(policy__max_ongoing_requests=2))
    return replica


def turn(replica: PolicyReplica) -> asyncio.Task[Generation]:
    return asyncio.ensure_future(replica.generate(PROMPT, Sampling(), TurnInfo()))


async def is_waiting(task: asyncio.Task[Generation]) -> bool:
    return not (await asyncio.wait([task], timeout=0.05))[0]


async def test_one_that_starts_while_the_others_are_paused_is_paused_until_they_are_resumed(engine, monkeypatch):
    replica = await started(monkeypatch, DesiredState(pause="abort_and_resume", pauses=5))
    waiting = turn(replica)
    assert await is_waiting(waiting)
    await replica.resume(4)
    assert await is_waiting(waiting), "an order from before the pause came late"
    await replica.resume(6)
    assert (await waiting).token_ids.tolist() == [7]
    await replica.pause("drain", 5)
    assert not replica.state().paused


async def test_a_pause_that_did_not_arrive_is_learnt_at_the_next_health_check_and_so_is_its_end(engine, monkeypatch):
    replica = await started(monkeypatch)
    for desired in DesiredState(pause="drain", pauses=1), DesiredState(pauses=2):
        monkeypatch.setattr(module.fleet_link, "desired_state", lambda config, desired=desired: desired)
        await replica.check_health()
        await replica._catching_up
        assert replica.state().paused == (desired.pause is not None)


async def test_the_log_says_what_a_replica_serves_and_when_that_changes(engine, monkeypatch, caplog):
    replica = await started(monkeypatch)
    await replica.pause("drain", 1)
    await replica.update_weights(WeightUpdate(Checkpoint("new"), 4, "drain"))
    await replica.resume(2)
    await replica.resume(3)
    lines = [re.sub(r"\d+\.\d+ s", "… s", message) for message in caplog.messages]
    assert lines == [
        "Replica r1 serves scripted with weights of version 3 after … s. Start: secrets … s, catching up … s.",
        "Paused (drain): no turn is sampled until resume.",
        "Weights of version 4 serve: brought here in … s, turns stopped (drain) in … s, loaded in … s.",
        "Resumed: turns are sampled again.",
    ]


async def test_a_broken_engine_ends_the_replica_and_the_log_says_why(engine, monkeypatch, ended, caplog):
    def broken() -> None:
        raise RuntimeError("the engine's thread has ended")

    replica = await started(monkeypatch)
    engine.check_health = broken
    with pytest.raises(RuntimeError):
        await replica.check_health()
    await asyncio.wait_for(ended.wait(), 60)
    assert "The replica ends itself and is replaced: its engine is broken." in caplog.messages
    assert "RuntimeError: the engine's thread has ended" in caplog.text


async def test_a_replica_of_a_service_whose_fleet_is_gone_does_not_start(engine, monkeypatch):
    monkeypatch.setattr(module.fleet_link, "desired_state", lambda config: None)
    replica = PolicyReplica.__new__(PolicyReplica)
    with pytest.raises(ServiceError, match="The fleet actor of service 'rollout' is gone"):
        await replica.__init__(settings(), has_fleet=True)
    await replica.__init__(settings(), has_fleet=False)
    assert not replica.state().paused, "started by itself, it serves the model as it is"


async def test_turns_beyond_the_limit_wait_and_keep_no_order_out(engine, monkeypatch):
    replica = await started(monkeypatch)
    await replica.pause("drain", 1)
    turns = [turn(replica) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.wait_for(replica.resume(2), 60)
    assert len(await asyncio.gather(*turns)) == 5
    assert engine.most == 2


async def test_a_turn_says_how_long_it_waited_at_the_replica_and_in_the_engine_s_queue(engine, monkeypatch):
    replica = await started(monkeypatch)
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    sample, parts = engine.generate, iter([(2.0, "abort"), (0.25, "stop"), (None, "stop")])

    async def queued(*args) -> Generation:
        now[0] += 50.0  # the engine waits and samples
        wait, reason = next(parts)
        return replace(await sample(*args), queue_seconds=wait, finish_reason=reason)

    engine.generate = queued
    await replica.pause("drain", 1)
    waiting = turn(replica)
    assert await is_waiting(waiting)
    now[0] += 7.0
    await replica.resume(2)
    assert (await waiting).queue_seconds == 7.0 + 2.0 + 0.25, "an interrupted turn waits twice"
    assert (await turn(replica)).queue_seconds is None, "this engine does not know how long"


async def test_weights_that_are_half_loaded_sample_nothing_and_end_the_replica(engine, monkeypatch, ended, caplog):
    replica = await started(monkeypatch)
    engine.error = RuntimeError("CUDA error")
    with pytest.raises(RuntimeError, match="CUDA error"):
        await replica.update_weights(WeightUpdate(Checkpoint("new"), 4, "abort_and_resume"))
    late = turn(replica)
    await ended.wait()
    said = "The replica ends itself and is replaced: its weights may be half loaded, after RuntimeError."
    assert said in caplog.messages
    assert "in load" in caplog.text, "the stack is logged"
    assert await is_waiting(late)
    late.cancel()


def group(seconds: float) -> Rendezvous:
    return Rendezvous("group", "127.0.0.1", 1, "gloo", 2, timeout_seconds=seconds)


async def test_a_programming_error_in_a_turn_is_marked_as_final_before_it_leaves_the_replica(engine, monkeypatch):
    async def broken(input_ids, sampling, info) -> Generation:
        return last_cause(None)  # raises a TypeError in the service's own code

    replica = await started(monkeypatch)
    engine.generate = broken
    with pytest.raises(TypeError) as raised:
        await turn(replica)
    assert raised.value.retryable is False


async def test_an_error_that_shows_a_secret_of_the_replica_leaves_it_as_a_redacted_fault(engine, monkeypatch):
    remember(key := "-".join(["battery", "horse"]))

    async def broken(input_ids, sampling, info) -> Generation:
        raise ConnectionError(f"the key {key} is refused")

    replica = await started(monkeypatch)
    engine.generate = broken
    with pytest.raises(EpisodeFault) as raised:
        await turn(replica)
    fault = raised.value.fault
    assert (fault.kind, fault.error, fault.retryable) == (FaultKind.POLICY, "ConnectionError", True)
    assert fault.message == "the key [redacted] is refused"
    assert "in broken" in fault.traceback
    assert key not in "".join(traceback.format_exception(raised.value)) + fault.traceback


async def test_a_group_whose_other_ranks_never_come_is_an_error_in_time_that_names_the_replica(
    engine, monkeypatch, ended
):
    replica = await started(monkeypatch)
    with pytest.raises(WeightError, match=r"Replica r1 could not join the group 'group' in 0.05 s"):
        await replica.join(group(0.05), {"r1": 1})
    monkeypatch.setattr(process_groups, "_LEAVE_SECONDS", 0.05)
    engine.leaves = False
    await replica.leave("group")
    await asyncio.wait_for(ended.wait(), 60)  # an engine that does not even leave can sample nothing


async def test_a_replica_that_cannot_join_says_so_while_others_may_still_wait_for_it(engine, monkeypatch):
    async def refused(rendezvous, rank) -> None:
        raise WeightError("The ranks did not connect.")

    engine.join = refused
    replica = await started(monkeypatch)
    with pytest.raises(WeightError, match="did not connect"):
        await replica.join(group(600.0), {"r1": 1})
    assert replica.state().lost_group == ("group", "The ranks did not connect.")


async def lost_update(engine: Engine, monkeypatch, end: str) -> tuple[PolicyReplica, asyncio.Task[Any]]:
    """A replica that waits for tensors when its group is lost in this way, and the task of its update."""
    monkeypatch.setattr(membership, "_GRACE_SECONDS", 0.01)
    replica = await started(monkeypatch)
    connected: list[asyncio.StreamWriter] = []
    store = await asyncio.start_server(lambda _, writer: connected.append(writer), "127.0.0.1", 0)
    meeting = group(0.05 if end == "time is up" else 600.0)
    engine.others.set()
    await replica.join(replace(meeting, port=store.sockets[0].getsockname()[1]), {"r1": 1})
    engine.others.clear()
    update = asyncio.ensure_future(replica.update_weights(WeightUpdate(BroadcastTensors("group", ()), 4, "drain")))
    await engine.waiting.wait()
    if end == "trainer gone":
        store.close()
    while end == "trainer gone" and not update.done():
        while connected:
            connected.pop().close()
        await asyncio.wait([update], timeout=0.01)
    if end == "group left":
        await replica.leave("group")
    await asyncio.wait([update], timeout=60)
    store.close()
    return replica, update


ENDS = {
    "time is up": "nothing came for 0.05 s",
    "group left": "it was left",
    "trainer gone": "the trainer's process has ended",
}


@pytest.mark.parametrize("end", list(ENDS))
async def test_a_replica_whose_engine_waits_for_tensors_which_nobody_sends_any_more_ends_itself(
    engine, monkeypatch, ended, end
):
    engine.load = functools.partial(never, engine)
    replica, update = await lost_update(engine, monkeypatch, end)
    with pytest.raises(membership.GroupLost, match=ENDS[end]):
        await update
    await asyncio.wait_for(ended.wait(), 60)
    assert replica.state().lost_group == ("group", f"group: {ENDS[end]}")


async def never(engine: Engine, staged: Any, version: int, *, keep_cache: bool) -> None:
    """Wait in a group as SGLang's scheduler does: nothing that is done in this process ends it."""
    engine.waiting.set()
    await asyncio.Event().wait()


@pytest.mark.parametrize("end", list(ENDS))
async def test_a_replica_whose_tensors_do_not_all_come_while_turns_run_serves_the_old_ones_on(
    engine, monkeypatch, ended, end
):
    engine.stages = True
    replica, update = await lost_update(engine, monkeypatch, end)
    with pytest.raises(WeightError, match=f"The new weights did not arrive: group: {ENDS[end]}"):
        await update
    assert (await turn(replica)).weight_versions.tolist() == [3]
    assert replica.state().lost_group == ("group", f"group: {ENDS[end]}")
    assert not ended.is_set()


async def test_weights_that_could_not_be_loaded_leave_the_old_ones_in_service(engine, monkeypatch):
    replica = await started(monkeypatch)
    engine.error = WeightError("the file is cut short.")
    with pytest.raises(WeightError):
        await replica.update_weights(WeightUpdate(Checkpoint("new"), 4, "drain"))
    assert (await turn(replica)).weight_versions.tolist() == [3]


async def test_some_parameters_are_not_loaded_over_other_weights_than_those_that_they_were_made_from(
    engine, monkeypatch
):
    replica = await started(monkeypatch)
    with pytest.raises(WeightError, match=r"Version 5 .*in version 4; this replica has version 3"):
        await replica.update_weights(WeightUpdate(Checkpoint("new"), 5, "drain", after=4))
    assert engine.loaded == []
    assert (await replica.update_weights(WeightUpdate(Checkpoint("new"), 4, "drain", after=3))).version == 4


async def test_turns_that_are_paused_in_place_refuse_an_update_that_would_empty_their_cache(engine, monkeypatch):
    replica = await started(monkeypatch)
    await replica.pause("in_place", 1)
    with pytest.raises(WeightError, match="paused in place"):
        await replica.check_update(WeightUpdate(Checkpoint("new"), 4, "drain"))
    await replica.check_update(WeightUpdate(Checkpoint("new"), 4, "in_place"))


async def test_an_engine_that_cannot_be_frozen_refuses_an_update_in_place_before_anything_is_sent(engine, monkeypatch):
    def refuse() -> None:
        raise WeightError("cannot be frozen")

    monkeypatch.setattr(engine, "check_freeze", refuse)
    replica = await started(monkeypatch)
    with pytest.raises(WeightError, match="cannot be frozen"):
        await replica.check_update(WeightUpdate(Checkpoint("new"), 4, "in_place"))
    await replica.check_update(WeightUpdate(Checkpoint("new"), 4, "drain"))


@pytest.mark.parametrize("kind", ["folder", "tensors"])
async def test_newest_weights_that_are_gone_are_said_once_and_touch_nothing(kind, engine, monkeypatch, caplog):
    async def lost() -> None:
        raise ray.exceptions.ObjectLostError("0" * 40, None, "")

    class Lost:
        def __await__(self):
            return lost().__await__()

    source = Checkpoint("gone") if kind == "folder" else StoredTensors((Bucket((), Lost()),))
    replica = await started(monkeypatch, DesiredState(update=WeightUpdate(source, 9, "drain")))
    await replica.check_health()
    await replica._catching_up
    assert engine.loaded == []
    assert (await turn(replica)).weight_versions.tolist() == [3]
    said = [record.getMessage() for record in caplog.records if "newest weights" in record.getMessage()]
    assert len(said) == 1
    assert "gone" in said[0]
