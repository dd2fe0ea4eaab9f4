"""Starts and stops the service on the cluster that this process is connected to.

Invariant: nothing waits for what it does not need. The processes of coordinator and fleet start while this process
imports Ray Serve, and the environment actors start while the policy's replicas do.
"""

from __future__ import annotations

import contextlib
import time

import ray
from ray.exceptions import RayError

import rollout_service.config.secrets as secrets
from actors.coordinator import Coordinator
from actors.fleet import Fleet
from rollout_service.cluster import application_name, call, coordinator_name, fleet_name, gateway_name
from rollout_service.collecting.coordinator import CoordinatorHandle, Service
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError
from rollout_service.policy.fleet import FleetHandle


def start(config: RolloutConfig) -> Service:
    """Start coordinator, fleet, policy replicas and environment actors. They run until `stop`; the actors also end with
    this process.

    Returns:
        The service, ready for collections.

    Raises:
        RolloutError: the configuration cannot be used, or something did not start.
    """
    begun = time.monotonic()
    name = application_name(config)
    service = _create_actors(config, name)
    try:
        received = service.fleet.receive.remote(secrets.of_replicas(config))
        started = service.coordinator.start.remote(secrets.of_episodes(config), service.fleet)
        if name is not None:
            from deploy import application  # it imports Ray Serve, which takes a second

            if application.run(config, name):
                call(service.fleet.adopt_replicas.remote(), "fleet")
        call(received, "fleet")
        call(started)
        if config.gateway.port is not None:
            from deploy import gateway

            gateway.run(config)
        service.coordinator.ready.remote(time.monotonic() - begun)
    except BaseException:
        stop(config, service)
        raise
    return service


def _create_actors(config: RolloutConfig, application: str | None) -> Service:
    """Create coordinator and fleet, whose processes then start at the same time."""
    service = config.service
    options = {"namespace": service.namespace, "num_cpus": 0, "max_concurrency": 1000}
    try:
        coordinator: CoordinatorHandle = (
            ray.remote(Coordinator).options(name=coordinator_name(service.name), **options).remote(config, application)
        )
        fleet: FleetHandle = (
            ray.remote(Fleet).options(name=fleet_name(service.name), **options).remote(config, application, coordinator)
        )
    except ValueError as error:  # what Ray raises for a name that is taken
        raise ServiceError(
            f"A service named {service.name!r} runs on this cluster already.",
            'Attach to it with RolloutClient("auto"), close the client that started it, or choose another name.',
        ) from error
    return Service(coordinator, fleet)


def stop(config: RolloutConfig, service: Service) -> None:
    """Stop what `start` started, as far as it came, on a cluster that goes on."""
    with contextlib.suppress(RayError, ServiceError):
        call(service.coordinator.stop.remote())
    for actor in (service.coordinator, service.fleet):
        ray.kill(actor)
    if config.gateway.port is not None:
        from deploy import application

        application.delete(gateway_name(config.service.name))
    name = application_name(config)
    if name is not None and config.policy.application is None:
        from deploy import application

        application.delete(name)
