"""What a replica asks the fleet of its service.

Invariant: a fleet that does not answer is the same as none; the replica decides what that means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import ray

from rollout_service.cluster import Reference, fleet_name
from rollout_service.config import RolloutConfig
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replicas import DesiredState

T = TypeVar("T")

_ANSWER_SECONDS = 60.0
"""How long the fleet may take to answer."""


def desired_state(config: RolloutConfig) -> DesiredState | None:
    """What the replica should be like; None: there is no fleet. Blocks."""
    return _ask(config, lambda fleet: fleet.desired_state.remote())


def variables(config: RolloutConfig) -> dict[str, str]:
    """The environment variables with secrets that `policy.env_vars_from` names, from the process that started the
    service; empty: there is no fleet. Blocks."""
    return _ask(config, lambda fleet: fleet.replica_variables.remote()) or {}


def _ask(config: RolloutConfig, ask: Callable[[FleetHandle], Reference[T]]) -> T | None:
    service = config.service
    try:
        fleet: FleetHandle = ray.get_actor(fleet_name(service.name), namespace=service.namespace)
        answer: T = ray.get(ask(fleet), timeout=_ANSWER_SECONDS)
        return answer
    except (ValueError, ray.exceptions.RayError):
        return None
