"""PolicyHandle: the Serve deployment of the policy's replicas as others call it. The replica itself is
`deploy.replica.PolicyReplica`."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from rollout_service.cluster import Reference
from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation, TurnInfo

ReplicaMethod = Literal["state", "check_update", "update_weights", "pause", "resume", "nccl", "join", "leave"]
"""The methods that the fleet calls in every replica at once."""


class PendingTurn(Reference[Generation], Protocol):
    """A turn that a replica samples."""

    def cancel(self) -> None:
        """Stop it in the replica."""
        ...


class _Generate(Protocol):
    def remote(self, input_ids: npt.NDArray[np.int32], sampling: Sampling, info: TurnInfo) -> PendingTurn: ...


class Answers(Protocol):
    """What all replicas answer to one call."""

    def results_async(self, *, return_exceptions: bool) -> Awaitable[list[Any]]:
        """The answers of the replicas, or what they raised."""
        ...


class PolicyHandle(Protocol):
    """Handle of the deployment."""

    generate: _Generate
    """Samples one turn in one of the replicas."""

    def options(self, *, session_id: str) -> Self:
        """A handle whose calls all go to the same replica as others of this session."""
        ...

    def broadcast(self, method: ReplicaMethod, *arguments: Any) -> Answers:
        """Call a method of every replica."""
        ...
