"""Fleet: the policy replicas as the coordinator sees them, and the weights that they serve.

Invariant: the version only grows, and one update runs at a time. What can be refused is refused by every replica before
the first of them touches a weight. The newest weights that can be had again are kept, for replicas that start later;
weights that are some of the model's only never go over others than those that they were made from.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException

from rollout_service.cluster import DEPLOYMENT
from rollout_service.config import PolicyConfig
from rollout_service.errors import RolloutError, ServiceError, WeightError
from rollout_service.policy import replica_size
from rollout_service.policy.replicas import DesiredState, Fit, ReplicaState, UpdateReport
from rollout_service.policy.weight_history import Names, WeightHistory
from rollout_service.policy.weights import BroadcastTensors, GroupTerms, Rendezvous, UpdateMode, WeightUpdate
from rollout_service.redaction import redact


class Fleet:
    """All replicas of one Serve application; `application` is None where an endpoint of others serves the policy."""

    def __init__(self, policy: PolicyConfig, application: str | None) -> None:
        self._policy = policy
        self._application = application
        self._updating: WeightUpdate | None = None
        self.desired = DesiredState()
        """What a replica that starts now should do."""
        self._history = WeightHistory()
        self._groups: dict[str, set[str]] = {}
        """Replicas in each process group."""
        self.version = policy.weight_version
        """Of the weights that the trainer gave last."""

    @functools.cached_property
    def _handle(self) -> Any:
        if self._application is None:
            raise WeightError(
                f"The policy at {self._policy.url} is served by others.", "Change its weights where it is served."
            )
        return serve.get_deployment_handle(DEPLOYMENT, self._application)

    async def update(self, update: WeightUpdate) -> UpdateReport:
        """Bring new weights to every replica.

        Raises:
            WeightError: as `check`.
            ServiceError: no replica could load them; or the replicas cannot be reached, and then the version is taken.
        """
        self._refuse(update)
        self._updating = update
        before = self.desired.update, self._history
        try:
            names = await self._see_that_it_fits(update)
            if not self._history.is_replaced_by(names):
                update = replace(update, after=self.version)
            self._history = self._history.followed_by(update.source, names)
            if self._history.source is not None:  # else later replicas have what could be had before, and say so
                whole = replace(update, source=self._history.source, after=None)
                self.desired = replace(self.desired, update=whole)
            try:
                answers = await self._ask("update_weights", update)
            except BaseException:  # who has loaded them nobody knows: the number is taken, and later replicas get them
                self.version = update.version
                raise
            loaded = [answer for answer in answers if isinstance(answer, ReplicaState)]
            if answers and not loaded:
                self.desired, self._history = replace(self.desired, update=before[0]), before[1]
                _all(answers)
            self.version = update.version
        finally:
            self._updating = None
        lost = [_text(answer) for answer in answers if not isinstance(answer, ReplicaState)]
        return UpdateReport(update.version, loaded, lost)

    async def check(self, update: WeightUpdate) -> None:
        """See whether this update could be made now. Changes nothing.

        Raises:
            WeightError: the weights are another model's, the version does not grow, another update is under way, or a
                replica is missing from the process group.
        """
        self._refuse(update)
        await self._see_that_it_fits(update)

    def _refuse(self, update: WeightUpdate) -> None:
        if self._updating is not None:
            raise WeightError(f"The update to version {self._updating.version} is still under way.", "Wait for it.")
        if update.version <= self.version:
            raise WeightError(
                f"version {update.version} is not newer than {self.version}, which is served.",
                f"Give {self.version + 1} or more, or leave it out.",
            )

    async def _see_that_it_fits(self, update: WeightUpdate) -> Names:
        """The parameters that the update changes."""
        fits: list[Fit] = _all(await self._ask("check_update", update))
        if not fits:
            raise ServiceError("No policy replica answers.", "Try again when they are replaced; see their logs.")
        names = fits[0].names
        if isinstance(update.source, BroadcastTensors):
            states = [fit.state for fit in fits]
            self._refuse_other_members(update.source.group, {state.replica for state in states})
            behind = [state for state in states if state.version != self.version]
            if behind and not self._history.is_replaced_by(names):
                raise WeightError(
                    f"Replica {behind[0].replica} has weights of version {behind[0].version}, not {self.version}: the "
                    "tensors leave out some that were changed since.",
                    "Send all parameters of the model.",
                )
        return names

    def _refuse_other_members(self, group: str, there: set[str]) -> None:
        members = self._groups.get(group, set())
        if members != there:
            raise WeightError(
                f"The process group {group!r} is not that of the replicas that run: {len(there - members)} of "
                f"{len(there)} started later, and {len(members - there)} of the group are gone.",
                "Close the group and make another with client.weight_group().",
            )

    async def pause(self, mode: UpdateMode) -> list[ReplicaState]:
        """Every replica samples nothing more until `resume`."""
        self.desired = replace(self.desired, pause=mode, pauses=self.desired.pauses + 1)
        return _all(await self._ask("pause", mode, self.desired.pauses))

    async def resume(self) -> list[ReplicaState]:
        """Go on after `pause`."""
        self.desired = replace(self.desired, pause=None, pauses=self.desired.pauses + 1)
        return _all(await self._ask("resume", self.desired.pauses))

    async def states(self) -> list[ReplicaState]:
        """What each replica says of itself."""
        return _all(await self._ask("state"))

    async def adopt(self) -> None:
        """Take over replicas that run already: their newest version is what is served.

        Raises:
            ServiceError: they serve another model than the settings name, or none.
        """
        if self._application is not None:
            states = await self.states()
            other = next((state.serves for state in states if state.serves not in ("", self._policy.serves)), None)
            if other is not None:
                raise ServiceError(
                    f"policy.application: the replicas of {self._application!r} serve {other}, not "
                    f"{self._policy.serves}: trajectories would name a model that did not sample them.",
                    "Set policy.engine and policy.model as the application has them, or name another application.",
                )
            self.version = max([self.version, *(state.version for state in states)])
            self.desired = DesiredState(pauses=max((state.pauses for state in states), default=0))
            if self.version > self._policy.weight_version:
                self._history = WeightHistory.unknown()

    async def group_terms(self) -> GroupTerms:
        """What a process group must be like that has the trainer and every replica's processes.

        Raises:
            WeightError: SGLang cannot bring all of them into one group, or NCCL is not set up alike in all.
        """
        if self._policy.engine_arguments.get("pp_size", 1) != 1:
            raise WeightError(
                "With policy.engine_arguments.pp_size above 1 SGLang gives the stages the same ranks.",
                "Send the weights without a group: client.update_weights(tensors), or a checkpoint.",
            )
        cumem = _all(await self._ask("nccl_cumem"))
        if len(set(cumem)) > 1:
            values = ", ".join(sorted({str(value) for value in cumem}))
            raise WeightError(
                f"NCCL_CUMEM_ENABLE differs between the replicas: {values}.", "Set it for all, in policy.env_vars."
            )
        return GroupTerms(1 + len(cumem) * replica_size.processes(self._policy), next(iter(cumem), None))

    async def join(self, rendezvous: Rendezvous) -> list[ReplicaState]:
        """Every replica joins the process group, with ranks from 1 on.

        Raises:
            WeightError: the group is of another size than the replicas make it, or does not come about; all have left
                it then.
        """
        names = sorted(state.replica for state in await self.states())
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
            joined: list[ReplicaState] = _all(await self._ask("join", rendezvous, ranks))
            gone = set(names) - {state.replica for state in joined}
            if gone:
                raise WeightError(
                    f"The group {rendezvous.name!r} did not come about: {', '.join(sorted(gone))} died meanwhile.",
                    "Make another when the replica is replaced.",
                )
        except RolloutError:
            await self.leave(rendezvous.name)
            raise
        return joined

    async def absent(self, group: str) -> list[str]:
        """Replicas of the process group that are gone."""
        try:
            there = {state.replica for state in await self.states()}
        except ServiceError:  # none is left
            there = set()
        return sorted(self._groups.get(group, set()) - there)

    async def leave(self, group: str) -> None:
        """Every replica leaves the process group; one that is in the middle of an update through it is replaced."""
        self._groups.pop(group, None)
        await self._ask("leave", group)

    async def _ask(self, method: str, *arguments: Any) -> list[Any]:
        """Each replica's answer, or what it raised."""
        try:
            answers: list[Any] = await self._handle.broadcast(method, *arguments).results_async(return_exceptions=True)
        except RayServeException as error:
            raise ServiceError(f"The policy's replicas cannot be reached: {error}", "See the replicas' logs.") from None
        return answers


def _all(answers: list[Any]) -> list[Any]:
    """The answers of the replicas that live, or an error among them, one of the service's own if there is one."""
    living = [answer for answer in answers if not isinstance(answer, RayActorError)]
    answers = living or answers  # what is lost is being replaced, and starts with what the others have
    errors = [_cause(answer) for answer in answers if isinstance(answer, BaseException)]
    if errors:
        raise next((error for error in errors if isinstance(error, RolloutError)), None) or ServiceError(
            f"{len(errors)} of {len(answers)} replicas failed; the first with: {_text(errors[0])}",
            "See the replicas' logs.",
        )
    return answers


def _cause(error: BaseException) -> BaseException:
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) else error


def _text(error: BaseException) -> str:
    cause = _cause(error)
    return f"{type(cause).__name__}: {(redact(str(cause)).strip() or '-').splitlines()[-1]}"
