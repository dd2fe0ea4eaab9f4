"""CoordinatorHandle: the coordinator of a service as others call it. The actor itself is
`actors.coordinator.Coordinator`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout_service.cluster import RemoteMethod, put
from rollout_service.collecting.group import Group
from rollout_service.collecting.request import Accepted, CollectionRequest
from rollout_service.config import RolloutConfig
from rollout_service.metrics.meter import Reading
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replicas import FleetState


class CoordinatorHandle(Protocol):
    """Handle of the coordinator actor. Each method is described there."""

    start: RemoteMethod[[dict[str, str], FleetHandle], None]
    ready: RemoteMethod[[float, str], None]
    configuration: RemoteMethod[[], RolloutConfig]
    submit: RemoteMethod[[CollectionRequest, str, str | None], Accepted]
    reopen: RemoteMethod[[str, str, str | None, bool | None], Accepted]
    next_group: RemoteMethod[[str, Sequence[int], bool, str | None], Group | None]
    acknowledge: RemoteMethod[[str, Sequence[int], str | None], None]
    drop: RemoteMethod[[str, Sequence[int], str | None], None]
    cancel: RemoteMethod[[str, str | None], None]
    cancel_submitted: RemoteMethod[[Accepted, str | None], None]
    renew: RemoteMethod[[str], None]
    leave: RemoteMethod[[str], None]
    policy_changed: RemoteMethod[[FleetState], None]
    fleet_state: RemoteMethod[[], FleetState | None]
    sampler: RemoteMethod[[CollectionRequest, Any, Any], dict[str, Any]]
    status: RemoteMethod[[], dict[str, Any]]
    metrics: RemoteMethod[[], list[Reading]]
    stop: RemoteMethod[[], None]


@dataclass(frozen=True, slots=True)
class Service:
    """The actors of a service that clients call."""

    coordinator: CoordinatorHandle
    fleet: FleetHandle
    put: Callable[[Any], Any] = put
    """Puts a value where the service's processes can read it, and returns what stands for it."""
