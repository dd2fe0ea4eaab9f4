"""Starts and stops the service on the cluster that this process is connected to.

Invariant: what can be refused is refused before anything that costs time or GPUs is started.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import RunTarget
from ray.serve.exceptions import RayServeException

import rollout_service.config.secrets as secrets
from actors.coordinator import Coordinator
from actors.fleet import Fleet
from deploy import policy
from rollout_service.cluster import application_name, call, coordinator_name, fleet_name
from rollout_service.collecting.coordinator import CoordinatorHandle, Service
from rollout_service.config import PolicyConfig, RolloutConfig
from rollout_service.errors import ConfigError, ServiceError, last_cause
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replica_size import gpus
from rollout_service.redaction import safe_cause

_POLL_SECONDS = 0.2

_DELETE_SECONDS = 5.0
"""For replicas to end by themselves."""


def start(config: RolloutConfig) -> Service:
    """Start coordinator, fleet, policy replicas and environment actors. They run until `stop`; the actors also end with
    this process.

    Returns:
        The service, ready for collections.

    Raises:
        RolloutError: the configuration cannot be used, or something did not come up.
    """
    application = application_name(config)
    service = _create_actors(config, application)
    coordinator, fleet = service.coordinator, service.fleet
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        received = fleet.receive.remote(secrets.of_replicas(config))
        call(coordinator.receive.remote(secrets.of_episodes(config), fleet))
        call(coordinator.check.remote())
        actors_started = coordinator.start.remote()
        call(received, "fleet")
        if application is not None:
            _deploy(config, application)
            call(fleet.adopt_replicas.remote(), "fleet")
        call(actors_started)
    except BaseException:
        stop(config, service)
        raise
    return service


def _create_actors(config: RolloutConfig, application: str | None) -> Service:
    """Create coordinator and fleet; their processes start at the same time."""
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
            'Attach to it with RolloutClient("auto"), or choose another service.name.',
        ) from error
    return Service(coordinator, fleet)


def _deploy(config: RolloutConfig, application: str) -> None:
    """Run the policy's Serve application and wait until its replicas sample."""
    settings = config.policy
    if settings.application is not None:
        _see_that_it_runs(application)
        return
    http: dict[str, Any] = {"proxy_location": "Disabled"}
    if settings.http_port is not None:
        options = {"host": settings.http_host, "port": settings.http_port}
        http = {"proxy_location": "EveryNode", "http_options": options}
    try:
        serve.start(**http)
        if settings.http_port is not None:
            _see_that_it_listens(settings)
        target = RunTarget(
            policy.service_app(config), name=application, route_prefix=None if settings.http_port is None else "/"
        )
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except (RayServeException, RayError, RuntimeError, TimeoutError) as error:
        raise ServiceError(
            f"The policy's Serve application did not come up: {last_cause(str(error))}", "See the cluster's logs."
        ) from safe_cause(error)
    _wait_until_it_samples(settings, application)


def _see_that_it_listens(settings: PolicyConfig) -> None:
    """Serve that runs already keeps its own address, and says so in a log only."""
    running = serve.context._get_global_client().http_config
    there = f"at {running.host}:{running.port}" if serve.status().proxies else "without HTTP"
    asked = f"at {settings.http_host}:{settings.http_port}"
    if there != asked:
        raise ServiceError(
            f"policy.http_host and http_port ask for HTTP {asked}, but Serve runs on this cluster already, {there}.",
            "Stop it with `serve shutdown`, or ask for the address that it has.",
        )


def _wait_until_it_samples(settings: PolicyConfig, application: str) -> None:
    deadline = time.monotonic() + settings.start_seconds
    while True:
        status = serve.status().applications.get(application)
        state = None if status is None else status.status
        if status is not None and state == "RUNNING":
            return
        said = _said(status)
        cause = last_cause(said) or "a replica's process died; its own log says more."
        # Serve tries again what failed; settings that were refused would be refused again.
        if state in ("DEPLOY_FAILED", "UNHEALTHY") or ConfigError.__name__ in said:
            raise ServiceError(f"The policy's replicas cannot start: {cause}", "Mend it and start again.")
        if time.monotonic() > deadline:
            free = ray.available_resources()
            raise ServiceError(
                f"The policy's replicas did not come up in policy.start_seconds={settings.start_seconds:g}: "
                f"{cause if said else state}. The cluster has {free.get('GPU', 0):g} GPUs and {free.get('CPU', 0):g} "
                f"CPUs free; a replica asks for {gpus(settings):g} and {settings.cpus_per_replica:g}.",
                "Free some, ask for fewer replicas, or allow more time.",
            )
        time.sleep(_POLL_SECONDS)


def _said(status: Any) -> str:
    """What Serve says of the deployment, a replica's traceback perhaps, or of the application."""
    if status is None:
        return ""
    texts = [deployment.message for deployment in status.deployments.values()] + [status.message]
    return next((text for text in texts if text), "")


def _see_that_it_runs(application: str) -> None:
    status = serve.status().applications.get(application)
    if status is None or status.status != "RUNNING":
        raise ServiceError(
            f"policy.application: there is no running Serve application {application!r} on this cluster"
            + ("." if status is None else f"; it is {status.status}."),
            "Start it with `serve run deploy.policy:app`, or leave policy.application out.",
        )


def stop(config: RolloutConfig, service: Service) -> None:
    """Stop what `start` started, as far as it came, on a cluster that goes on."""
    with contextlib.suppress(RayError, ServiceError):
        call(service.coordinator.stop.remote())
    for actor in (service.coordinator, service.fleet):
        ray.kill(actor)
    application = application_name(config)
    if application is not None and config.policy.application is None:
        with contextlib.suppress(RayServeException, RayError):
            _delete(application)


def _delete(application: str) -> None:
    """Delete the Serve application. No turn is worth draining any more, and a replica that never found a place would be
    waited for as long as the longest turn: what does not go soon is killed."""
    serve.delete(application, _blocking=False)
    deadline = time.monotonic() + _DELETE_SECONDS
    while application in serve.status().applications:
        if time.monotonic() > deadline:
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if actor["name"].startswith(f"SERVE_REPLICA::{application}#"):
                    with contextlib.suppress(ValueError):
                        ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))
            deadline += _DELETE_SECONDS
        time.sleep(_POLL_SECONDS)
