"""Starts and stops the service on the cluster that this process is connected to.

Invariant: nothing waits for what it does not need. The processes of coordinator and fleet start while this process
imports Ray Serve, and the environment actors start while the policy's replicas do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import rollout_service.config.secrets as secrets
import rollout_service.services as services
import rollout_service.twins as twins
from actors.coordinator import Coordinator
from actors.fleet import Fleet
from actors.pacer import Pacer
from rollout_service.cluster import (
    NoAnswerYet,
    answer,
    application_name,
    call,
    coordinator_name,
    fleet_name,
    owned_applications,
    pacer_name,
)
from rollout_service.collecting.coordinator import CoordinatorHandle, Service
from rollout_service.config import RolloutConfig
from rollout_service.config.user_server import USER_KEY_VAR
from rollout_service.errors import ServiceError
from rollout_service.gateway.tokens import new_token
from rollout_service.pacing import endpoints
from rollout_service.phases import Phases
from rollout_service.policy.fleet import FleetHandle
from rollout_service.preflight import check_http
from rollout_service.redaction import remember

_STOP_SECONDS = 10.0
"""How long the coordinator may take to end its collections."""


def start(config: RolloutConfig, owner: str | None, phases: Phases | None = None) -> Service:
    """Start coordinator, fleet, policy replicas and environment actors. They run until `stop`.

    Args:
        owner: id of a client that this process renews the lease of: all of it also ends with that, in whatever way this
            process ends. None: for nobody.
        phases: what was timed before. None: nothing was.

    Returns:
        The service, ready for collections.

    Raises:
        RolloutError: the configuration cannot be used, or something did not start.
    """
    check_http(config, here=True)  # this process is on a node, and every node serves HTTP
    phases = phases or Phases()
    phases.end("checks")
    name = application_name(config)
    _make_user_key(config)
    service = _create_actors(config, name, owner)
    served: list[str] = []
    phases.end("actors created")
    try:
        if config.gateway.port is not None:
            from deploy import gateway  # it imports Ray Serve, which takes a second

            gateway.check_free(config)
        kept = secrets.of_episodes(config) if config.service.journal is not None else {}
        received = service.fleet.receive.remote(secrets.of_replicas(config), kept)
        started = service.coordinator.start.remote(secrets.of_episodes(config), service.fleet)
        if name is not None or config.serves_user:
            from deploy import application

            application.check_free(config)
            phases.end("Ray Serve")
            served = owned_applications(config)
            if config.serves_user:
                from deploy import user_simulator

                user_simulator.begin(config)
            if name is not None:
                application.run(config, name)
                phases.end("replicas")
            if config.serves_user:
                user_simulator.wait(config)
                phases.end("user simulator")
            if config.policy.application is not None:  # replicas from before, with weights that somebody gave them
                call(service.fleet.adopt_replicas.remote(), "fleet")
        call(received, "fleet")
        call(started)
        phases.end("coordinator and environment actors")
        if config.gateway.port is not None:
            served = owned_applications(config)
            gateway.run(config)
            phases.end("gateway")
        service.coordinator.ready.remote(phases.total, str(phases))
    except BaseException:
        _stop(config, service, served)
        raise
    return service


def _make_user_key(config: RolloutConfig) -> None:
    """Make the key of a user simulator that the service serves, unless this process has one."""
    if config.serves_user:
        remember(os.environ.setdefault(USER_KEY_VAR, new_token()))


def _create_actors(config: RolloutConfig, application: str | None, owner: str | None) -> Service:
    """Create coordinator and fleet, whose processes then start at the same time.

    They outlive this process, also where the service ends with it: the coordinator then ends what Ray would leave.
    """
    service = config.service
    found = services.find_actors(service.name, service.namespace)
    if found and coordinator_name(service.name) not in found:
        raise services.leftovers(services.Parts(service.name, service.namespace, found))
    options = {"namespace": service.namespace, "num_cpus": 0, "max_concurrency": 1000, "lifetime": "detached"}
    made = ray.remote(Coordinator).options(name=coordinator_name(service.name), **options, **_restarts(config))
    with _name_may_be_taken(service.name):
        coordinator: CoordinatorHandle = made.remote(config, application, owner)
    made = ray.remote(Fleet).options(name=fleet_name(service.name), **options, **_restarts(config))
    fleet: FleetHandle = made.remote(config, application, coordinator)
    if endpoints.of(config):  # nothing waits for it
        restarts = {"max_restarts": -1}
        ray.remote(Pacer).options(name=pacer_name(service.name), **options, **restarts).remote(config)
    return Service(coordinator, fleet)


@contextlib.contextmanager
def _name_may_be_taken(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # what Ray raises for a name that is taken
        raise ServiceError(
            f"A service named {name!r} runs on this cluster already.",
            'Attach to it with RolloutClient("auto"), stop it with `rollout-service service stop`, or choose another '
            "name. One whose client has just died ends by itself, after service.lease_seconds at most.",
        ) from error


def _restarts(config: RolloutConfig) -> dict[str, Any]:
    """Options of coordinator and fleet where there is a journal: they are started on this node, and started again, on
    the journal's node if that lives. Ray places an actor that needs nothing at random, whatever affinity it has: they
    ask for a byte of memory."""
    if config.service.journal is None:
        return {}
    here = ray.get_runtime_context().get_node_id()
    return {"max_restarts": -1, "memory": 1, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}


def stop(config: RolloutConfig, service: Service) -> None:
    """Stop what `start` started, on a cluster that goes on."""
    _stop(config, service, owned_applications(config))


def _stop(config: RolloutConfig, service: Service, served: list[str]) -> None:
    with contextlib.suppress(RayError, ServiceError, NoAnswerYet):
        twins.run(answer(service.coordinator.stop.remote(), seconds=_STOP_SECONDS))
    services.end(config.service, served)
