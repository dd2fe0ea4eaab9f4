"""WeightsClient: what a client does with the policy's replicas: new weights, a pause, a look.

Invariant: every method that waits has an async twin with the prefix `a`; both are one definition, see `twins`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import rollout_service.cluster as cluster
import rollout_service.config.arguments as arguments
import rollout_service.twins as twins
from rollout_service.cluster import call, repeated
from rollout_service.collecting.coordinator import Service
from rollout_service.errors import WeightError
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replicas import ReplicaState, UpdateReport
from rollout_service.policy.weights import UpdateMode, check_mode, requested_update

if TYPE_CHECKING:  # it needs torch
    from rollout_service.policy.weight_group import WeightGroup

_MOST_SECONDS = 1e8
"""Longest timeout that can be set. Timers overflow at some length."""


class WeightsClient:
    """The part of a client that reaches the fleet."""

    _service: Service
    _fleet: FleetHandle

    def update_weights(
        self,
        weights: str | os.PathLike[str] | Mapping[str, Any],
        *,
        version: int | None = None,
        mode: UpdateMode = "abort_and_resume",
        group: WeightGroup | None = None,
    ) -> UpdateReport:
        """Give every policy replica new weights, while episodes run. Returns when the replicas serve them.

        Args:
            weights: a checkpoint folder in Hugging Face format that the replicas' nodes can read; or torch tensors (on
                any device) or numpy arrays by their names in the model's checkpoint. Parameters that are left out keep
                their values.
            version: version of the new weights, larger than all before. None: the next one.
            mode: what running turns do: `drain` (finish first), `abort_and_resume` (stop, then continue from their
                tokens), `in_place` (continue without a stop, on the old weights' cache).
            group: send the tensors through this process group. None: through Ray's object store, where they stay for
                replicas that start later, as long as this process lives.

        Raises:
            WeightError: the weights are another model's, the version does not grow, another update is running, or a
                replica is outside the group: nothing was changed. Or the group broke during the update and is closed:
                no replica serves a part of the new weights, and `weight_version` says what is served.
            ServiceError: no replica could load them.
        """
        version = self.weight_version() + 1 if version is None else version
        update = requested_update(weights, version, mode, group, self._service.put)
        if group is None or isinstance(weights, (str, os.PathLike)):
            return call(self._fleet.update_weights.remote(update), "fleet")
        group.check_open()
        call(self._fleet.check_update.remote(update), "fleet")  # a refusal must come before anything is sent
        return group.update(weights.values(), update)

    aupdate_weights = twins.in_thread(update_weights)

    def weight_group(
        self,
        backend: Literal["nccl", "gloo"] = "nccl",
        address: str | None = None,
        timeout_seconds: float = 600.0,
    ) -> WeightGroup:
        """Make a process group of this process (rank 0) and every replica's GPUs, for `update_weights`.

        It holds the replicas that run now: close it and make another when replicas come or go. With `nccl`, this
        process must be set up as the replicas are, above all NCCL_CUMEM_ENABLE (0 with SGLang); this sets what it can.

        Args:
            backend: `nccl` for GPUs, `gloo` for CPUs.
            address: address of this machine, as the replicas reach it. None: the one that Ray uses.
            timeout_seconds: longest wait for the other ranks, to join and in an update. With SGLang the first tensor
                also waits until the turns have stopped. A replica that dies is noticed in seconds.

        Raises:
            WeightError: the group could not be formed, or NCCL could not work in it: names the variable that differs.
        """
        from rollout_service.policy.weight_group import WeightGroup

        if backend not in ("nccl", "gloo"):
            raise WeightError(f"backend is {backend!r}.", "Choose nccl for GPUs, or gloo for CPUs.")
        arguments.optional(arguments.text, "address", address, "10.0.0.7", WeightError)
        arguments.number("timeout_seconds", timeout_seconds, 1e-3, _MOST_SECONDS, WeightError)
        terms = call(self._fleet.group_terms.remote(), "fleet")
        return WeightGroup.meet(address or cluster.own_address(), backend, terms, self._fleet, timeout_seconds)

    async def aweight_version(self) -> int:
        """Version of the weights that the service was given last."""
        return await repeated(self._fleet.weight_version.remote, "fleet")

    weight_version = twins.blocking(aweight_version)

    async def areplicas(self) -> list[ReplicaState]:
        """State of each policy replica: weight version, number of running turns, whether it is paused."""
        return await repeated(self._fleet.replicas.remote, "fleet")

    replicas = twins.blocking(areplicas)

    async def apause(self, mode: UpdateMode = "abort_and_resume") -> None:
        """Stop sampling in every replica until `resume`. Returns when they have stopped: then the trainer can use the
        GPUs.

        Args:
            mode: what happens to running turns, see `update_weights`. The time that a turn waits counts towards
                `policy.timeout_seconds`.

        Raises:
            WeightError: another mode.
        """
        check_mode(mode)
        await repeated(lambda: self._fleet.pause.remote(mode), "fleet")

    pause = twins.blocking(apause)

    async def aresume(self) -> None:
        """Go on sampling after `pause`."""
        await repeated(self._fleet.resume.remote, "fleet")

    resume = twins.blocking(aresume)
