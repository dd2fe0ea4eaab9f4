"""Fleet: the policy replicas of a service and the weights that they serve. A named actor that clients call directly.

Invariant: the version only grows, and one update runs at a time. Every replica checks an update before the first one
loads it. The newest weights that can be loaded again are kept for replicas that start later. A part of the model's
weights is never loaded over other weights than those that it was made from. The coordinator knows of a new version, and
of a pause, before the call that brought it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ray.exceptions import RayError

import actors.answers as answers
import actors.exporter as exporter
import rollout_service.config.secrets as secrets
import rollout_service.logs as logs
import rollout_service.twins as twins
from actors.restart import is_restarted, patiently
from rollout_service.cluster import DEPLOYMENT, repeated
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, ServiceError, WeightError
from rollout_service.metrics.engines import count_update, engine_readings
from rollout_service.metrics.meter import Reading
from rollout_service.policy import replica_size
from rollout_service.policy.deployment import PolicyHandle, ReplicaMethod
from rollout_service.policy.replicas import DesiredState, Fit, FleetState, ReplicaState, UpdateReport
from rollout_service.policy.weight_history import Names, WeightHistory
from rollout_service.policy.weights import BroadcastTensors, GroupTerms, Rendezvous, UpdateMode, WeightUpdate

if TYPE_CHECKING:  # this actor starts fast because it imports little
    from rollout_service.collecting.coordinator import CoordinatorHandle

_log = logs.logger(__name__)


class Fleet:
    """The replicas of one Serve application, if the service has one. An async Ray actor."""

    def __init__(
        self, config: RolloutConfig, application: str | None, coordinator: CoordinatorHandle | None = None
    ) -> None:
        """
        Args:
            application: name of the Serve application that fronts the policy; None: an endpoint does, over HTTP.
            coordinator: the actor that is told of new versions and pauses.
        """
        logs.configure(config.service.log_level)
        secrets.know(config)
        self._policy = config.policy
        self._application = application
        self._coordinator = coordinator
        self._variables: dict[str, str] = {}
        self._of_episodes: dict[str, str] = {}
        self._received = asyncio.Event()
        self._updating: WeightUpdate | None = None
        self._history = WeightHistory()
        self._handle: PolicyHandle | None = None
        self._finding = asyncio.Lock()
        self._meter = exporter.meter(config)
        self._groups: dict[str, set[str]] = {}
        """Names of the replicas in each process group."""
        self.desired = DesiredState()
        self.version = config.policy.weight_version
        """Version of the weights that the trainer gave last."""
        self._keeps_variables = config.service.journal is not None
        self._has_forgotten, self._recalling = False, asyncio.Lock()
        """Whether this fleet has to ask the replicas for the version of their weights, and who asks."""
        if coordinator is not None and is_restarted():
            self._go_on(config, twins.run(repeated(coordinator.fleet_state.remote)))

    def _go_on(self, config: RolloutConfig, state: FleetState | None) -> None:
        """Become what a fleet was that died. If the coordinator died as well (None), only the replicas know the
        weights, and only this node's environment the secrets."""
        if state is None:
            self._has_forgotten = True
            self._take_variables(secrets.of_replicas(config), secrets.of_episodes(config))
            return
        self.version, self.desired, self._history = state.version, state.desired, state.history
        self._take_variables(state.replica_variables, state.episode_variables)
        _log.warning("The fleet goes on at weight version %d. Process groups have to be made again.", self.version)

    def _take_variables(self, of_replicas: Mapping[str, str], of_episodes: Mapping[str, str]) -> None:
        secrets.receive(of_replicas)
        self._variables, self._of_episodes = dict(of_replicas), dict(of_episodes)
        self._received.set()

    # Replicas --------------------------------------------------------------------------------------------------------

    async def receive(self, variables: dict[str, str], of_episodes: dict[str, str]) -> None:
        """Take the environment variables with secrets that replicas need, from the process that starts the service.
        The constructor does not take them, because Ray stores its arguments.

        Args:
            of_episodes: those that episodes need, kept for a coordinator that is started again.
        """
        self._take_variables(variables, of_episodes)
        await self._tell_coordinator()

    async def replica_variables(self) -> dict[str, str]:
        """The environment variables with secrets that a replica needs, as soon as they were received."""
        await self._received.wait()
        return self._variables

    async def state(self) -> FleetState:
        """What a coordinator or a fleet that is started again must know."""
        await self._remembered()
        return self._state()

    def _state(self) -> FleetState:
        variables = (self._variables, self._of_episodes) if self._keeps_variables else ({}, {})
        return FleetState(self.version, self.desired, self._history, *variables)

    async def desired_state(self) -> DesiredState:
        """What a replica that starts now should be like."""
        return self.desired

    async def replicas(self) -> list[ReplicaState]:
        """What each replica says of itself; empty where an endpoint outside the service serves the policy."""
        return [] if self._application is None else await self._states()

    async def metrics(self) -> list[Reading]:
        """The numbers of weight updates, and those of the replicas together."""
        return self._meter.readings() + engine_readings(await self.replicas())

    async def adopt_replicas(self) -> None:
        """Continue from the weights of replicas that ran before the service: their newest version is what it serves.

        Raises:
            ServiceError: they serve another model than the settings name, or none.
        """
        if self._application is None:
            return
        states = await self._states()
        answers.check_model(states, self._policy.serves, self._application)
        self.desired = DesiredState.of(states)
        newest = max([self.version, *(state.version for state in states)])
        if newest > self._policy.weight_version:
            self._history = WeightHistory.unknown()
        await self._reach(newest)

    async def _remembered(self) -> None:
        """Wait until it is known which weights the replicas serve."""
        async with self._recalling:
            if self._has_forgotten:
                await patiently(self._recall)
                self._has_forgotten = False

    async def _recall(self) -> None:
        if self._application is not None and not await self._states():
            raise ServiceError("No policy replica answers.", "Start the service again; see their logs.")
        await self.adopt_replicas()
        _log.warning("Fleet and coordinator died: the fleet goes on with what the replicas serve, %d.", self.version)

    async def pause(self, mode: UpdateMode) -> list[ReplicaState]:
        """Have every replica sample nothing until `resume`.

        Raises:
            WeightError: the service has no replicas of its own.
        """
        states = await self._order("pause", mode)
        _log.info("Paused (%s) until resume; replicas: %d.", mode, len(states))
        return states

    async def resume(self) -> list[ReplicaState]:
        """Have every replica sample again after `pause`.

        Raises:
            WeightError: the service has no replicas of its own.
        """
        states = await self._order("resume", None)
        _log.info("Resumed; replicas: %d.", len(states))
        return states

    async def _order(self, method: Literal["pause", "resume"], mode: UpdateMode | None) -> list[ReplicaState]:
        self._check_has_replicas()
        await self._remembered()
        number = self.desired.pauses + 1
        self.desired = replace(self.desired, pause=mode, pauses=number)
        await self._tell_coordinator()
        return answers.living(await self._ask(method, *(() if mode is None else (mode,)), number))

    # Weights ---------------------------------------------------------------------------------------------------------

    async def weight_version(self) -> int:
        """Version of the weights that the trainer gave last."""
        await self._remembered()
        return self.version

    async def observe(self, version: int) -> None:
        """Note that tokens of this version were sampled. Where an endpoint outside the service serves the policy,
        nothing else tells of new weights."""
        if version > self.version:
            await self._reach(version)

    async def check_update(self, update: WeightUpdate) -> None:
        """Check whether this update could be made now. Changes nothing.

        Raises:
            WeightError: the weights are another model's, the version does not grow, another update is under way, or a
                replica is missing from the process group.
        """
        await self._remembered()
        self._check_turn(update)
        await self._check_fits(update)

    async def update_weights(self, update: WeightUpdate) -> UpdateReport:
        """Bring new weights to every replica.

        Raises:
            WeightError: as `check_update`.
            ServiceError: no replica could load them; or the replicas cannot be reached, and then the version is taken.
        """
        await self._remembered()
        self._check_turn(update)
        self._updating = update
        started = time.monotonic()
        try:
            report = await self._update(update)
        except RolloutError as error:
            count_update(self._meter, update.mode, None)
            seconds = time.monotonic() - started
            _log.warning("Weight update to version %d failed after %.1f s: %s", update.version, seconds, error)
            raise
        finally:
            self._updating = None
        seconds = time.monotonic() - started
        count_update(self._meter, update.mode, seconds)
        _log.info(
            "Weights of version %d are served by %d replicas after %.1f s (%s).",
            update.version,
            len(report.replicas),
            seconds,
            update.mode,
        )
        return report

    async def _update(self, update: WeightUpdate) -> UpdateReport:
        names = await self._check_fits(update)
        before = self.desired.update, self._history
        if not self._history.is_replaced_by(names):
            update = replace(update, after=self.version)
        self._history = self._history.followed_by(update.source, names)
        if self._history.source is not None:  # else later replicas get the last weights that can be loaded again
            whole = replace(update, source=self._history.source, after=None)
            self.desired = replace(self.desired, update=whole)
        try:
            came = await self._ask("update_weights", update)
        except BaseException:  # some replicas may have loaded them: the version is taken, and later replicas load them
            await self._reach(update.version)
            raise
        loaded = [answer for answer in came if isinstance(answer, ReplicaState)]
        lost = [answers.text(answer) for answer in came if not isinstance(answer, ReplicaState)]
        if lost and isinstance(update.source, BroadcastTensors):  # the trainer may be gone, and not say so
            with contextlib.suppress(ServiceError):  # the version counts all the same
                await self._ask("leave", update.source.group)
        if came and not loaded:
            self.desired, self._history = replace(self.desired, update=before[0]), before[1]
            answers.living(came)
        await self._reach(update.version)
        return UpdateReport(update.version, loaded, lost)

    def _check_turn(self, update: WeightUpdate) -> None:
        """Raise `WeightError` if another update is under way, or this one's version is not newer."""
        if self._updating is not None:
            raise WeightError(f"The update to version {self._updating.version} is still under way.", "Wait for it.")
        if update.version <= self.version:
            raise WeightError(
                f"version {update.version} is not newer than {self.version}, which is served.",
                f"Give {self.version + 1} or more, or leave it out.",
            )

    async def _check_fits(self, update: WeightUpdate) -> Names:
        """Have every replica check the update. Returns the parameters that it changes."""
        fits: list[Fit] = answers.living(await self._ask("check_update", update))
        if not fits:
            raise ServiceError("No policy replica answers.", "Try again when they are replaced; see their logs.")
        names = fits[0].names
        if isinstance(update.source, BroadcastTensors):
            states = [fit.state for fit in fits]
            answers.check_members(update.source.group, self._groups.get(update.source.group, set()), states)
            behind = [state for state in states if state.version != self.version]
            if behind and not self._history.is_replaced_by(names):
                raise WeightError(
                    f"Replica {behind[0].replica} has weights of version {behind[0].version}, not {self.version}: the "
                    "tensors leave out some that were changed since.",
                    "Send all parameters of the model.",
                )
        return names

    async def _reach(self, version: int) -> None:
        """The trainer's version is this one from now on."""
        self.version = version
        await self._tell_coordinator()

    async def _tell_coordinator(self) -> None:
        if self._coordinator is not None:
            with contextlib.suppress(RayError):  # it is gone, and whoever waits for it hears that from Ray
                await self._coordinator.policy_changed.remote(self._state())

    # Process groups --------------------------------------------------------------------------------------------------

    async def group_terms(self) -> GroupTerms:
        """What a process group must be like that has the trainer and every replica's processes.

        Raises:
            WeightError: SGLang cannot bring all of them into one group.
        """
        if self._policy.engine_arguments.get("pp_size", 1) != 1:
            raise WeightError(
                "With policy.engine_arguments.pp_size above 1 SGLang gives the stages the same ranks.",
                "Send the weights without a group: client.update_weights(tensors), or a checkpoint.",
            )
        settings = answers.living(await self._ask("nccl"))
        return GroupTerms(1 + len(settings) * replica_size.processes(self._policy), tuple(settings))

    async def join_group(self, rendezvous: Rendezvous) -> list[ReplicaState]:
        """Every replica joins the process group, with ranks from 1 on.

        Raises:
            WeightError: the group is of another size than the replicas make it, or did not come about and was left.
        """
        names = sorted(state.replica for state in await self._states())
        each = replica_size.processes(self._policy)
        if rendezvous.world_size != 1 + len(names) * each:
            raise WeightError(
                f"The group {rendezvous.name!r} has {rendezvous.world_size} ranks; the trainer and {len(names)} "
                f"replicas of {each} processes make {1 + len(names) * each}.",
                "A replica came or went meanwhile: make the group again.",
            )
        ranks = dict(zip(names, itertools.count(1, each), strict=False))
        self._groups[rendezvous.name] = set(names)
        try:
            joined: list[ReplicaState] = answers.living(await self._ask("join", rendezvous, ranks))
            gone = set(names) - {state.replica for state in joined}
            if gone:
                raise WeightError(
                    f"The group {rendezvous.name!r} did not come about: {', '.join(sorted(gone))} died meanwhile.",
                    "Make another when the replica is replaced.",
                )
        except RolloutError:
            await self.leave_group(rendezvous.name)
            raise
        return joined

    async def absent(self, group: str) -> list[str]:
        """The process group's replicas that died or left it, each with the reason."""
        states: list[ReplicaState] = []
        with contextlib.suppress(ServiceError):  # none is left
            states = await self._states()
        return answers.missing(group, self._groups.get(group, set()), states)

    async def leave_group(self, group: str) -> None:
        """Every replica leaves the process group. A replica in the middle of an update through it is replaced."""
        self._groups.pop(group, None)
        await self._ask("leave", group)

    # Calls -----------------------------------------------------------------------------------------------------------

    def _check_has_replicas(self) -> None:
        if self._application is None:
            raise WeightError(
                f"The policy at {self._policy.url} is served by others.", "Change its weights where it is served."
            )

    async def _find(self) -> PolicyHandle:
        """The deployment's handle."""
        self._check_has_replicas()
        async with self._finding:
            if self._handle is None:
                self._handle = await asyncio.to_thread(_deployment, str(self._application))
        return self._handle

    async def _states(self) -> list[ReplicaState]:
        return answers.living(await self._ask("state"))

    async def _ask(self, method: ReplicaMethod, *arguments: Any) -> list[Any]:
        """Each replica's answer, or what it raised."""
        handle = await self._find()
        from ray.serve.exceptions import RayServeException

        try:
            return await handle.broadcast(method, *arguments).results_async(return_exceptions=True)
        except RayServeException as error:
            raise ServiceError(f"The policy's replicas cannot be reached: {error}", "See the replicas' logs.") from None


def _deployment(application: str) -> PolicyHandle:
    from ray import serve  # here: it takes a second to import, and the start of a service need not wait for that

    handle: PolicyHandle = serve.get_deployment_handle(DEPLOYMENT, application)
    return handle
