"""The Serve applications with a service's models: the policy's, and the user simulator's. Started and waited for.

Invariant: `run` and `wait` return when a replica can sample, or raise with the reason of the replica that could not
start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import RunTarget
from ray.serve.exceptions import RayServeException

import rollout_service.served_user as served_user
from deploy import policy, serve_http
from rollout_service.cluster import application_name
from rollout_service.config import PolicyConfig, RolloutConfig
from rollout_service.errors import ConfigError, ServiceError, last_cause
from rollout_service.policy.replica_size import gpus
from rollout_service.redaction import safe_cause
from rollout_service.services import Parts, leftovers

_POLL_SECONDS = 0.1

_in_serve = threading.Lock()
"""Serve marks the module of a deployment's router while it pickles it. Two services that start in two threads would
take each other's mark away."""


def check_free(config: RolloutConfig) -> None:
    """Check that a service may start its models' applications.

    Raises:
        ServiceError: a dead service left one of that name.
    """
    own = {application_name(config)} if config.policy.application is None else set()
    own |= {served_user.application_name(config.service.name)} if config.serves_user else set()
    if left := sorted(own & serve.status().applications.keys()):
        raise leftovers(Parts(config.service.name, "", [], left))


def run(config: RolloutConfig, application: str) -> None:
    """Run the policy's Serve application, or find the one that `policy.application` names; returns when its replicas
    sample.

    Raises:
        ServiceError: it does not run, or its replicas cannot start.
    """
    settings = config.policy
    if settings.application is not None:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _check_runs(application)
        return
    serve_http.start(config)
    route = None if settings.http_port is None else "/"
    begin(lambda: RunTarget(policy.service_app(config), name=application, route_prefix=route), "policy")
    wait(settings, application, "policy", "policy")


def begin(made: Callable[[], RunTarget], whose: str) -> None:
    """Begin to start an application.

    Args:
        made: makes it.
        whose: `policy` or `user simulator`, for errors.

    Raises:
        ServiceError: Serve does not take it.
    """
    try:
        with _in_serve:
            serve.run_many([made()], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except (RayServeException, RayError, RuntimeError, TimeoutError) as error:
        raise ServiceError(
            f"The {whose}'s Serve application did not come up: {last_cause(str(error))}", "See the cluster's logs."
        ) from safe_cause(error)


def wait(settings: PolicyConfig, application: str, whose: str, section: str) -> None:
    """Wait until a replica can sample.

    Args:
        settings: of its engine.
        section: where these stand in the configuration, for errors.

    Raises:
        ServiceError: none can start, or none did in time.
    """
    deadline = time.monotonic() + settings.start_seconds
    while True:
        status = serve.status().applications.get(application)
        state = None if status is None else status.status
        if status is not None and state == "RUNNING":
            return
        said = _said(status)
        cause = last_cause(said) or "a replica's process died; its own log says more."
        # Serve retries a failed start, but settings that were refused once will be refused again.
        if state in ("DEPLOY_FAILED", "UNHEALTHY") or ConfigError.__name__ in said:
            raise ServiceError(f"The {whose}'s replicas cannot start: {cause}", "Fix the cause above and restart.")
        if time.monotonic() > deadline:
            free = ray.available_resources()
            raise ServiceError(
                f"The {whose}'s replicas did not come up in {section}.start_seconds={settings.start_seconds:g}: "
                f"{cause if said else state}. The cluster has {free.get('GPU', 0):g} GPUs and {free.get('CPU', 0):g} "
                f"CPUs free; a replica asks for {gpus(settings):g} and {settings.cpus_per_replica:g}.",
                "Free some, ask for fewer replicas, or allow more time.",
            )
        time.sleep(_POLL_SECONDS)


def _said(status: Any) -> str:
    """Serve's message about the deployment, which may be a replica's traceback, or else about the application."""
    if status is None:
        return ""
    texts = [deployment.message for deployment in status.deployments.values()] + [status.message]
    return next((text for text in texts if text), "")


def _check_runs(application: str) -> None:
    """Raise `ServiceError` unless the application runs."""
    status = serve.status().applications.get(application)
    if status is None or status.status != "RUNNING":
        raise ServiceError(
            f"policy.application: there is no running Serve application {application!r} on this cluster"
            + ("." if status is None else f"; it is {status.status}."),
            "Start it with `serve run deploy.policy:app`, or leave policy.application out.",
        )
