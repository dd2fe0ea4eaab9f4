"""Starts and stops the service on the cluster that this process is connected to.

Invariant: what can be refused is refused before anything that costs time or GPUs is started.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayTaskError

from actors.coordinator import Coordinator
from deploy import policy
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, ServiceError


def coordinator_name(service: str) -> str:
    """Name of the coordinator actor of a service."""
    return f"{service}-coordinator"


def start(config: RolloutConfig) -> Any:
    """Start coordinator, policy replicas and environment actors; they live as long as this process.

    Returns:
        The coordinator's actor handle, ready for collections.

    Raises:
        RolloutError: the configuration cannot be used, or something did not come up.
    """
    service = config.service
    application = f"{service.name}-policy"
    try:
        coordinator = (
            ray.remote(Coordinator)
            .options(name=coordinator_name(service.name), namespace=service.namespace, num_cpus=0, max_concurrency=1000)
            .remote(config, application)
        )
    except ValueError as error:  # Ray's word for a name that is taken
        raise ServiceError(
            f"A service named {service.name!r} runs on this cluster already.",
            'Attach to it with RolloutClient("auto"), or choose another service.name.',
        ) from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        call(coordinator.check.remote())
        actors_started = coordinator.start.remote()
        _deploy(config, application)
        call(actors_started)
    except BaseException:
        ray.kill(coordinator)
        raise
    return coordinator


def _deploy(config: RolloutConfig, application: str) -> None:
    try:
        serve.start(proxy_location="Disabled")
        serve.run(policy.app(config), name=application, route_prefix=None)
    except Exception as error:
        raise ServiceError(
            f"The policy's Serve application did not come up: {str(error).splitlines()[0]}",
            "See the replica's log.",
        ) from error


def stop(config: RolloutConfig, coordinator: Any) -> None:
    """Stop what `start` started, on a cluster that goes on."""
    call(coordinator.stop.remote())
    ray.kill(coordinator)
    serve.delete(f"{config.service.name}-policy")


def call(reference: Any) -> Any:
    """Wait for an actor's answer; the service's own errors come out as themselves, not wrapped by Ray."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RolloutError):
            raise error.cause from None
        raise
