"""PolicyReplica: one engine, and the service's calls to it.

Invariant: a turn comes back whole, and each token has the version of the weights that sampled it, whatever happened to
the weights meanwhile. Only one update changes the weights at a time. A replica whose weights may be half loaded ends
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray import serve

import actors.exporter as exporter
import rollout_service.garbage as garbage
import rollout_service.logs as logs
from deploy import fleet_link, http_api
from deploy.engines import factory
from deploy.engines.base import Engine
from deploy.process_groups import ProcessGroups
from deploy.turn_gate import TurnGate
from rollout_service.background import BackgroundTasks
from rollout_service.config import RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import (
    EpisodeFault,
    Fault,
    FaultKind,
    RolloutError,
    ServiceError,
    WeightError,
    attach_origin,
    discreet,
    first_line,
)
from rollout_service.gateway.guard import Guard, tokens_of
from rollout_service.metrics.engines import set_engine
from rollout_service.phases import Phases
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.policy.nccl import NcclSettings
from rollout_service.policy.replicas import Fit, ReplicaState
from rollout_service.policy.resume import resumed
from rollout_service.policy.weights import Rendezvous, UpdateMode, WeightUpdate, check_available
from rollout_service.redaction import keep_out_of_logs, shows_secret

_log = logs.logger(__name__)

_INTERRUPT_SECONDS = 0.2
"""Seconds between interruptions while turns leave. A turn that had not reached the engine yet needs another one."""

_BEHIND_SECONDS = 60.0
"""How long a turn waits if the replica's weights are too old for it."""

_EXIT_SECONDS = 1.0
"""Seconds until a broken replica ends, so that its error still reaches the caller."""

_CLOSE_SECONDS = 3.0
"""How long the engine of a broken replica may take to stop its processes. The rest of them end with the replica's."""


class PolicyReplica:
    """The class of the Serve deployment: an engine behind a gate for turns."""

    async def __init__(self, config: RolloutConfig, has_fleet: bool = False) -> None:  # type: ignore[misc]  # Serve awaits it
        """Start the engine and load the service's newest weights. The replica is paused if the others are.

        Args:
            has_fleet: the replica belongs to a service, whose fleet must be there. False: it was started by itself, and
                follows the fleet of `service.name` if there is one.

        Raises:
            RolloutError: settings that cannot be used.
            ServiceError: the service's fleet is gone, so the replica cannot know which weights to serve.
        """
        logs.configure(config.service.log_level)
        keep_out_of_logs("ray.serve")  # Serve logs what a call raises, with its traceback
        phases = Phases()
        self._config = config
        self._has_fleet = has_fleet
        self._changing = asyncio.Lock()
        self._paused = False
        self._pauses = 0
        """Number of the last pause or resume order."""
        self._stopped_seconds = 0.0
        self._stopped: UpdateMode | None = None
        """How the turns were stopped. None: they run."""
        self._catching_up: asyncio.Task[None] | None = None
        self._catch_up_failure = ""
        """Why the last attempt to catch up failed."""
        self._tasks = BackgroundTasks()
        self._meter = exporter.meter(config)
        await asyncio.to_thread(fleet_link.receive_variables, config)
        phases.end("secrets")
        self._guard = Guard(tokens_of(config.gateway))
        self._engine = await asyncio.to_thread(_start_engine, config, phases)
        self._groups = ProcessGroups(self._engine)
        self._slots = asyncio.Semaphore(config.policy.max_ongoing_requests)
        self._turn_gate = TurnGate(self._engine.version)
        await self._catch_up_if_possible(starting=True)
        phases.end("catching up")
        _log.info(
            "Replica %s serves %s with weights of version %d after %.1f s%s. Start: %s.",
            self.state().replica,
            config.policy.serves,
            self._engine.version,
            phases.total,
            "; it is paused" if self._paused else "",
            phases,
        )

    # Turns -----------------------------------------------------------------------------------------------------------

    async def generate(self, input_ids: npt.NDArray[np.int32], sampling: Sampling, info: TurnInfo) -> Generation:
        """Sample one whole turn, waiting while the replica is paused.

        Raises:
            EpisodeFault: the weights are older than `info.min_version`, and no newer ones come.
        """
        waits_since = time.perf_counter()
        await self._reach(info.min_version)

        async def sample(prompt: npt.NDArray[np.int32], how: Sampling) -> Generation:
            nonlocal waits_since
            async with self._slots, self._turn_gate.turn():
                waited = time.perf_counter() - waits_since
                part = await self._engine.generate(prompt, how, info)
                waits_since = time.perf_counter()
            if part.queue_seconds is not None:
                part.queue_seconds += waited
            return part

        try:
            return await resumed(sample, input_ids, sampling)
        except Exception as error:
            if shows_secret(error):  # the caller does not know this process's secrets, so it cannot redact them
                raise EpisodeFault.of_fault(Fault.of(FaultKind.POLICY, error)) from None
            attach_origin(error)
            raise

    async def _reach(self, version: int) -> None:
        """Wait until the weights have that version. An update may be on its way; but weights that were sent through a
        process group before this replica started do not come."""
        try:
            await asyncio.wait_for(self._turn_gate.reached(version), _BEHIND_SECONDS)
        except TimeoutError:
            raise EpisodeFault(
                FaultKind.POLICY,
                f"the replica has weights of version {self._engine.version}, and the turn must not be sampled with any "
                f"older than {version}: it started after those were sent through a process group, or it cannot load "
                "them, see its log",
            ) from None

    async def __call__(self, request: Any) -> Any:
        """Answer HTTP: SGLang's `/generate`, see `deploy.http_api`."""
        return await http_api.respond(request, self._config.policy, self.generate, self._engine.version, self._guard)

    # Weights ---------------------------------------------------------------------------------------------------------

    async def check_update(self, update: WeightUpdate) -> Fit:
        """Check that the replica can load this update. Changes nothing.

        Raises:
            WeightError: it cannot.
        """
        if self._stopped == "in_place" and update.mode != "in_place":
            raise WeightError(
                f"mode {update.mode!r} empties the cache, which turns that are paused in place still need.",
                "Give mode='in_place', or pause in another mode.",
            )
        if update.mode == "in_place":
            self._engine.check_freeze()
        return Fit(self.state(), await asyncio.to_thread(self._engine.check, update.source))

    async def update_weights(self, update: WeightUpdate) -> ReplicaState:
        """Load new weights, and sample with them from now on. Does nothing if the replica has these or newer ones.

        Raises:
            WeightError: they could not be loaded, or belong on top of other weights. The old ones still serve.
            Exception: any other failure. The replica ends itself, and its successor starts with whole weights.
        """
        async with self._changing:
            if update.version > self._engine.version:
                if update.after not in (None, self._engine.version):
                    raise WeightError(
                        f"Version {update.version} is some parameters only, to be changed in version {update.after}; "
                        f"this replica has version {self._engine.version}.",
                        "It gets the others as soon as it can have them; what came through a process group, send anew.",
                    )
                await self._change(update)
            return self.state()

    async def _change(self, update: WeightUpdate) -> None:
        """Bring the new weights to this replica while turns run, and stop these only to put them in."""
        start = time.monotonic()
        staged = await self._stage(update)
        there = time.monotonic()
        try:
            await self._stop(update.mode)
            stopped = time.monotonic()
            await self._load(staged, update)
        finally:
            await self._go()
        self._stopped_seconds = time.monotonic() - stopped
        _log.info(
            "Weights of version %d serve: brought here in %.2f s, turns stopped (%s) in %.2f s, loaded in %.2f s.",
            update.version,
            there - start,
            update.mode,
            stopped - there,
            self._stopped_seconds,
        )

    async def _stage(self, update: WeightUpdate) -> Any:
        try:
            return await self._groups.during(update.source, self._engine.stage(update.source))
        except RolloutError:
            raise
        except Exception as error:  # nothing was changed
            raise WeightError(f"The new weights did not arrive: {first_line(error)}", "Send them again.") from error

    async def _load(self, staged: Any, update: WeightUpdate) -> None:
        keep = self._stopped == "in_place"
        try:
            work = self._engine.load(staged, update.version, keep_cache=keep)
            await self._groups.during(update.source, work)
        except WeightError:
            raise
        except BaseException as error:  # also a cancellation: some of the weights are loaded by then
            self._stopped = None  # so that `_go` does not start the turns again
            self._end_soon(f"its weights may be half loaded, after {type(error).__name__}", error)
            raise
        self._turn_gate.set_version(update.version)

    async def pause(self, mode: UpdateMode, number: int) -> ReplicaState:
        """Stop sampling until `resume`. Does nothing if a later order came before, see `DesiredState.pauses`."""
        async with self._changing:
            if number > self._pauses:
                self._pauses, self._paused = number, True
                await self._stop(mode)
                _log.info("Paused (%s): no turn is sampled until resume.", mode)
            return self.state()

    async def resume(self, number: int) -> ReplicaState:
        """Continue after `pause`. Does nothing if a later order came before."""
        async with self._changing:
            if number > self._pauses:
                was_paused = self._paused
                self._pauses, self._paused = number, False
                await self._go()
                if was_paused:
                    _log.info("Resumed: turns are sampled again.")
            return self.state()

    async def _stop(self, mode: UpdateMode) -> None:
        """Stop the turns as the mode says, unless they are stopped already."""
        if self._stopped is not None:
            return
        self._stopped = mode
        if mode == "in_place":
            await self._engine.freeze()
            return
        self._turn_gate.close()
        while mode == "abort_and_resume" and self._turn_gate.inside:
            self._engine.interrupt()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._turn_gate.empty(), _INTERRUPT_SECONDS)
        await self._turn_gate.empty()

    async def _go(self) -> None:
        """Undo `_stop`, unless the replica is paused."""
        if self._paused or self._stopped is None:
            return
        stopped, self._stopped = self._stopped, None
        if stopped == "in_place":
            await self._engine.thaw()
        self._turn_gate.open()

    async def nccl(self) -> NcclSettings:
        """How NCCL is set up in the engine's processes, which have this process's environment."""
        return replace(NcclSettings.here(), connects=self._engine.connects)

    async def join(self, rendezvous: Rendezvous, ranks: dict[str, int]) -> ReplicaState:
        """Join a process group for weight updates, see `Engine.join`.

        Args:
            ranks: first rank of each replica.

        Raises:
            WeightError: the group was not formed in time.
        """
        name = self.state().replica
        rank = ranks.get(name)
        if rank is None:  # it started meanwhile; the next update says so
            return self.state()
        await self._groups.join(rendezvous, rank, name)
        return self.state()

    async def leave(self, group: str) -> ReplicaState:
        """Leave the process group of that name. If the engine goes on waiting in the group, for tensors or for other
        members, it would wait forever, so the replica ends itself."""
        try:
            await self._groups.leave(group)
        except TimeoutError:
            self._end_soon(f"its engine waits in the process group {group!r}, which was left")
        return self.state()

    async def _catch_up(self, starting: bool) -> None:
        """Adopt the service's desired state. A new replica does not have it, nor does one where an order failed."""
        desired = await asyncio.to_thread(fleet_link.desired_state, self._config)
        if desired is None:
            if starting and self._has_fleet:
                raise ServiceError(
                    f"The fleet actor of service {self._config.service.name!r} is gone: which weights this replica "
                    "should serve is not known.",
                    "Start the service again.",
                )
            return
        if desired.pause is None:
            await self.resume(desired.pauses)
        else:
            await self.pause(desired.pause, desired.pauses)
        update = desired.update
        if update is not None and update.version > self._engine.version:
            await asyncio.to_thread(self._engine.check, update.source)
            await check_available(update.source)
            # A starting replica has no cache to keep, and must not claim a cache of older weights.
            await self.update_weights(replace(update, mode="drain") if starting else update)

    # Life ------------------------------------------------------------------------------------------------------------

    def state(self) -> ReplicaState:
        """The replica's state now."""
        return ReplicaState(
            replica=serve.get_replica_context().replica_id.unique_id,
            version=self._engine.version,
            paused=self._paused,
            running=self._turn_gate.inside,
            pauses=self._pauses,
            serves=self._config.policy.serves,
            occupancy=self._engine.occupancy(),
            stopped_seconds=self._stopped_seconds,
            lost_group=self._groups.lost,
        )

    async def check_health(self) -> None:
        """Called by Serve every few seconds, which replaces the replica if this raises. Serve would first wait for
        running turns, which a broken engine cannot finish, so the replica also ends itself."""
        try:
            self._engine.check_health()
        except Exception as error:
            self._end_soon("its engine is broken", error)
            raise
        set_engine(self._meter, self.state())
        if self._catching_up is None or self._catching_up.done():  # not awaited, because loading can take minutes
            self._catching_up = self._tasks.start(self._catch_up_if_possible(), "catching up with the newest weights")

    async def _catch_up_if_possible(self, starting: bool = False) -> None:
        try:
            await self._catch_up(starting)
        except (WeightError, ray.exceptions.RayError) as error:
            if str(error) != self._catch_up_failure:  # repeated every few seconds, but logged once
                self._catch_up_failure = str(error)
                _log.warning("The newest weights cannot be loaded: %s", error)

    def __del__(self) -> None:
        """Called by Serve when the replica has no turns left."""
        self._end_engine()

    def _end_engine(self) -> None:
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.close()

    def _end_soon(self, why: str, error: BaseException | None = None) -> None:
        _log.error("The replica ends itself and is replaced: %s.", why, exc_info=error)
        asyncio.get_running_loop().call_later(_EXIT_SECONDS, self._end)

    def _end(self) -> None:
        """End this process, after a short time for the engine to stop its own. A thread does that, because the engine
        may wait in a process group."""
        closing = threading.Thread(target=self._end_engine, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        os._exit(1)


def _start_engine(config: RolloutConfig, phases: Phases) -> Engine:
    with discreet("The policy's engine does not start"):  # Serve logs what this raises
        engine = factory.make(config, phases)
    garbage.freeze()
    return engine
