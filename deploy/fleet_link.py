"""What a replica asks the fleet of its service.

Invariant: a fleet that does not answer is the same as none; the replica decides what that means.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import ray

import rollout_service.config.secrets as secrets
from rollout_service.cluster import Reference, fleet_name
from rollout_service.config import RolloutConfig
from rollout_service.errors import ConfigError
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replicas import DesiredState
from rollout_service.redaction import remember

T = TypeVar("T")

_ANSWER_SECONDS = 60.0
"""How long the fleet may take to answer."""

_POLL_SECONDS = 0.2
"""Time between two calls of a fleet that is being started again."""


def desired_state(config: RolloutConfig) -> DesiredState | None:
    """What the replica should be like; None: there is no fleet. Blocks."""
    return _ask(config, lambda fleet: fleet.desired_state.remote())


def receive_variables(config: RolloutConfig) -> None:
    """Set the environment variables with secrets that the settings name in this process, as the process that started
    the service had them. Blocks.

    Raises:
        ConfigError: a variable is set neither there nor here.
    """
    secrets.know(config)
    named = [("policy.env_vars_from", name) for name in config.policy.env_vars_from]
    if config.gateway.tokens_var is not None:
        named.append(("gateway.tokens_var", config.gateway.tokens_var))
    if config.serves_user and config.user.key_var is not None:
        named.append(("user.serve", config.user.key_var))
    if named:
        secrets.receive(_ask(config, lambda fleet: fleet.replica_variables.remote()) or {})
    for setting, name in named:
        if name not in os.environ:
            raise ConfigError(
                f"{setting}: {name} is set neither where the service was started nor on this node.",
                "Export it in one of these places. The settings hold only its name.",
            )
        remember(os.environ[name])


def _ask(config: RolloutConfig, ask: Callable[[FleetHandle], Reference[T]]) -> T | None:
    service = config.service
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            fleet: FleetHandle = ray.get_actor(fleet_name(service.name), namespace=service.namespace)
            answer: T = ray.get(ask(fleet), timeout=max(0.0, deadline - time.monotonic()))
            return answer
        except ray.exceptions.ActorUnavailableError:  # it is being started again
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)
        except (ValueError, ray.exceptions.RayError):
            return None
