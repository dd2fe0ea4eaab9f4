"""FleetHandle: the fleet of a service as others call it. The actor itself is `actors.fleet.Fleet`."""

from __future__ import annotations

from typing import Protocol

from rollout_service.cluster import RemoteMethod
from rollout_service.metrics.meter import Reading
from rollout_service.policy.replicas import DesiredState, FleetState, ReplicaState, UpdateReport
from rollout_service.policy.weights import GroupTerms, Rendezvous, UpdateMode, WeightUpdate


class FleetHandle(Protocol):
    """Handle of the fleet actor. Each method is described there."""

    receive: RemoteMethod[[dict[str, str], dict[str, str]], None]
    state: RemoteMethod[[], FleetState]
    replica_variables: RemoteMethod[[], dict[str, str]]
    desired_state: RemoteMethod[[], DesiredState]
    replicas: RemoteMethod[[], list[ReplicaState]]
    metrics: RemoteMethod[[], list[Reading]]
    adopt_replicas: RemoteMethod[[], None]
    pause: RemoteMethod[[UpdateMode], list[ReplicaState]]
    resume: RemoteMethod[[], list[ReplicaState]]
    weight_version: RemoteMethod[[], int]
    observe: RemoteMethod[[int], None]
    check_update: RemoteMethod[[WeightUpdate], None]
    update_weights: RemoteMethod[[WeightUpdate], UpdateReport]
    group_terms: RemoteMethod[[], GroupTerms]
    join_group: RemoteMethod[[Rendezvous], list[ReplicaState]]
    absent: RemoteMethod[[str], list[str]]
    leave_group: RemoteMethod[[str], None]
