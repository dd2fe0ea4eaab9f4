"""Starts and stops the service on the cluster that this process is connected to.

Invariant: what can be refused is refused before anything that costs time or GPUs is started.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from actors.coordinator import Coordinator
from deploy import policy
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, ServiceError


def coordinator_name(service: str) -> str:
    """Name of the coordinator actor of a service."""
    return f"{service}-coordinator"


def start(config: RolloutConfig) -> Any:
    """Start coordinator, policy replicas and environment actors; they run until `stop`; the actors also end with
    this process.

    Returns:
        The coordinator's actor handle, ready for collections.

    Raises:
        RolloutError: the configuration cannot be used, or something did not come up.
    """
    service = config.service
    application = _application(config)
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
        stop(config, coordinator)
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
    """Stop what `start` started, as far as it came, on a cluster that goes on."""
    with contextlib.suppress(RayError, ServiceError):
        call(coordinator.stop.remote())
    ray.kill(coordinator)
    with contextlib.suppress(RayServeException, RayError):
        serve.delete(_application(config))


def _application(config: RolloutConfig) -> str:
    return f"{config.service.name}-policy"


def call(reference: Any) -> Any:
    """Wait for an actor's answer; the service's own errors come out as themselves, not wrapped by Ray.

    Raises:
        ServiceError: the actor is gone.
    """
    try:
        return ray.get(reference)
    except RayError as error:
        raise translated(error) from None


def translated(error: RayError) -> BaseException:
    """What a caller of the service should see for an error that Ray raised."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, RolloutError) else error
    if isinstance(error, RayActorError):
        return ServiceError("The service's coordinator is gone.", "Start the service again; see the cluster's logs.")
    return error
