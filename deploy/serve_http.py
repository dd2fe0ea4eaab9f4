"""Ray Serve and its HTTP server, which the policy's replicas and the gateway share.

Invariant: Serve listens where the settings say or not at all. It has one address per cluster, and the first to start it
decides.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException

import rollout_service.cluster as cluster
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError, last_cause
from rollout_service.redaction import safe_cause


def start(config: RolloutConfig) -> None:
    """Start Serve, with HTTP if the settings ask for it. Does nothing if it runs like that.

    Raises:
        ServiceError: it cannot be started, or runs at another address.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    asked = config.http_address
    location = "Disabled" if asked is None else "EveryNode"
    try:
        _start(proxy_location=location, **({} if asked is None else {"http_options": options(config)}))
    except (RayServeException, RayError, RuntimeError, ValueError, TimeoutError) as error:
        raise ServiceError(
            f"Ray Serve did not come up: {last_cause(str(error))}", "See the cluster's logs."
        ) from safe_cause(error)
    if asked is not None:
        _check_address(config, *asked)


def _start(**asked: Any) -> None:
    if not cluster.started_here():  # else every process there has it, and the controller starts sooner without options
        wanted = {name: os.environ.get(name, value) for name, value in cluster.SERVE_CONTROLLER_ENVIRONMENT.items()}
        asked["controller_options"] = {"runtime_env": {"env_vars": wanted}}
    try:
        serve.start(**asked)
    except ActorAlreadyExistsError:  # another client started Serve at the same moment, so that this one finds it
        serve.start(**asked)


def options(config: RolloutConfig) -> dict[str, Any]:
    """Serve's HTTP options for the address and the TLS files of the settings."""
    found = config.http_address
    assert found is not None
    made: dict[str, Any] = {"host": found[0], "port": found[1]}
    if config.gateway.tls_certificate is not None:
        made |= {"ssl_certfile": config.gateway.tls_certificate, "ssl_keyfile": config.gateway.tls_key}
    return made


def _check_address(config: RolloutConfig, host: str, port: int) -> None:
    """Raise `ServiceError` if Serve ran already with another address. Serve itself keeps that and only logs it."""
    client = serve.context._get_global_client()
    running = client.http_config
    # The proxies may not be there yet if another client has just started Serve.
    has_http = ray.get(client._controller.get_proxy_location.remote()) not in (None, ProxyLocation.Disabled)
    there = _said(running.host, running.port, running.ssl_certfile) if has_http else "without HTTP"
    asked = _said(host, port, config.gateway.tls_certificate)
    if there != asked:
        whose = _asks(config)
        raise ServiceError(
            f"{whose} ask for HTTP {asked}, but Serve runs on this cluster already, {there}.",
            "Stop it with `serve shutdown`, or ask for the address that it has.",
        )


def _asks(config: RolloutConfig) -> str:
    """The settings that say where Serve shall listen."""
    if config.policy.http_port is not None:
        return "policy.http_host and http_port"
    return "gateway.host and port" if config.gateway.port is not None else "user.serve.http_port (8000 if null)"


def _said(host: str | None, port: int, certificate: str | None) -> str:
    return f"at {host}:{port}" + ("" if certificate is None else f" with TLS ({certificate})")
