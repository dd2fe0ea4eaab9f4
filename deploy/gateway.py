"""The gateway: the service over HTTP, for trainers outside the cluster. A FastAPI application on Ray Serve.

Invariant: it holds nothing but groups that are on their way. It listens where `gateway.host` and `gateway.port` say,
under the service's name, and ends with the service.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp

import rollout_service.cluster as cluster
import rollout_service.logs as logs
from deploy import fleet_link, serve_http
from deploy.gateway_api import api
from rollout_service.collecting.coordinator import Service
from rollout_service.config import Evaluation, RolloutConfig, User
from rollout_service.errors import ServiceError, discreet, last_cause
from rollout_service.gateway.guard import Guard, tokens_of
from rollout_service.redaction import keep_out_of_logs, safe_cause

_NO_LIMIT = 100_000
"""Limit on concurrent requests, most of which wait for a group: in effect, none."""

_FIND_SECONDS = 10.0
"""How long the service's actors may take to appear."""


def check_free(config: RolloutConfig) -> None:
    """Check that a service may start its gateway.

    Raises:
        ServiceError: a dead service left one of that name, or a service of that name in another namespace has it.
    """
    name = cluster.gateway_name(config.service.name)
    if config.gateway.port is not None and name in serve.status().applications:
        raise ServiceError(
            f"Ray Serve on this cluster has an application {name} already.",
            f"Another service.name gives the gateway another name. If it is a dead service's, remove it with "
            f"`rollout-service service stop {config.service.name}`.",
        )


def run(config: RolloutConfig) -> None:
    """Start the gateway of the service, and wait until it answers. Does nothing if the settings ask for none.

    Raises:
        ServiceError: it does not come up.
    """
    if config.gateway.port is None:
        return
    serve_http.start(config)
    name = cluster.gateway_name(config.service.name)
    try:
        serve.run(application(config), name=name, route_prefix=route_of(config.service.name))
    except (RayServeException, RayError, RuntimeError, TimeoutError) as error:
        status = serve.status().applications.get(name)
        said = "" if status is None else next((each.message for each in status.deployments.values()), "")
        raise ServiceError(
            f"The gateway did not come up: {last_cause(said or str(error))}", "Fix the cause above and restart."
        ) from safe_cause(error)


def application(config: RolloutConfig) -> serve.Application:
    """The Serve application of the gateway of the service that `config` names."""
    # Serve stores the arguments, and the addresses of the other models may contain a password.
    own = config.model_copy(update={"user": User(), "evaluation": Evaluation()})
    return serve.deployment(**_OPTIONS)(serve.ingress()(Gateway)).bind(own)


_OPTIONS: dict[str, Any] = {
    "name": "gateway",
    "num_replicas": 1,  # it holds the groups of every stream
    "max_ongoing_requests": _NO_LIMIT,
    "ray_actor_options": {"num_cpus": 0},
    "graceful_shutdown_timeout_s": 1.0,
    "graceful_shutdown_wait_loop_s": 0.1,
    "health_check_period_s": 2.0,
    "max_constructor_retry_count": 3,
    "logging_config": {"log_level": "WARNING", "enable_access_log": False},
}


def route_of(service: str) -> str:
    """Where the gateway of the service is below Serve's address."""
    return f"/{urllib.parse.quote(service, safe='')}"


class Gateway:
    """The class of the Serve deployment."""

    def __init__(self, config: RolloutConfig) -> None:
        """
        Raises:
            RolloutError: the tokens cannot be used, or the service does not run.
        """
        logs.configure(config.service.log_level)
        keep_out_of_logs("ray.serve")
        with discreet("The gateway does not start"):
            fleet_link.receive_variables(config)
            self._guard = Guard(tokens_of(config.gateway), config.gateway.requests_per_second)
            self._names = config.service
            self._service = self._found()
            self._running = cluster.call(self._service.coordinator.configuration.remote())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve after the constructor, on the event loop."""
        return api(self._service, self._running, self._guard)

    def _found(self) -> Service:
        coordinator = cluster.find(cluster.coordinator_name(self._names.name), self._names.namespace, _FIND_SECONDS)
        fleet = cluster.find(cluster.fleet_name(self._names.name), self._names.namespace, _FIND_SECONDS)
        if coordinator is None or fleet is None:
            raise cluster.gone("coordinator" if coordinator is None else "fleet")
        return Service(coordinator, fleet)
