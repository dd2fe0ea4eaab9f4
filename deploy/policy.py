"""The Ray Serve application that fronts the policy replicas: tokens in, tokens out.

Invariant: it is made from the configuration's `policy` section alone: by `service_app(config)` for a service, and by
`serve run deploy.policy:app config=FILE policy.replicas=8` to serve a policy without one.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from deploy.replica import PolicyReplica
from rollout_service.cluster import DEPLOYMENT, SERVE_ENVIRONMENT
from rollout_service.config import Evaluation, PolicyConfig, RolloutConfig, User, parse_value
from rollout_service.errors import ConfigError
from rollout_service.policy.replica_size import gpus

_NO_LIMIT = 100_000
"""Limit on a replica's concurrent calls: in effect, none."""

_DRAIN_MARGIN_SECONDS = 30.0
"""Extra shutdown grace on top of policy.timeout_seconds."""


def app(config: RolloutConfig | dict[str, Any]) -> serve.Application:
    """The Serve application of this configuration.

    Args:
        config: the settings. Or the arguments of `serve run`: `config`, the path of a YAML file, and settings by their
            dotted names, as text or values.

    Raises:
        ConfigError: bad settings, or an engine that is not served here.
    """
    return _bound(_from_arguments(config) if isinstance(config, dict) else config, has_fleet=False)


def service_app(config: RolloutConfig) -> serve.Application:
    """The Serve application of a service. Its replicas start only while the service's fleet can tell them which weights
    to serve.

    Raises:
        ConfigError: as `app` raises it.
    """
    return _bound(config, has_fleet=True)


def _bound(config: RolloutConfig, *, has_fleet: bool) -> serve.Application:
    if config.policy.engine == "http":
        raise ConfigError("policy.engine is http: its endpoint serves the policy.", "Choose an engine to serve one.")
    # Serve stores the arguments of a replica, and the addresses of the other models may contain a password.
    own = config.model_copy(update={"user": User(), "evaluation": Evaluation()})
    return serve.deployment(**_options(config.policy))(PolicyReplica).bind(own, has_fleet)


def _from_arguments(arguments: dict[str, Any]) -> RolloutConfig:
    path = arguments.get("config")
    overrides = {
        name: parse_value(value, f"argument {name}") if isinstance(value, str) else value
        for name, value in arguments.items()
        if name != "config"
    }
    return RolloutConfig.load(path, overrides)


def _options(policy: PolicyConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": DEPLOYMENT,
        # The replica limits its turns itself. If Serve did, waiting turns would block the call that resumes them.
        "max_ongoing_requests": _NO_LIMIT,
        # A replica is one actor whose engine starts its own processes on the same node. They share the actor's GPUs, so
        # the replica needs no placement group.
        "ray_actor_options": {
            "num_cpus": policy.cpus_per_replica,
            "num_gpus": gpus(policy),
            "runtime_env": {"env_vars": SERVE_ENVIRONMENT | policy.env_vars},
        },
        "request_router_config": RequestRouterConfig(request_router_class="deploy.routing:SessionRouter"),
        "graceful_shutdown_timeout_s": policy.timeout_seconds + _DRAIN_MARGIN_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 9.0,  # Serve replaces a replica after three of them: one that hangs, within 30 s
        "max_constructor_retry_count": 3,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},  # a line per turn would be megabytes
    }
    if policy.autoscaling is None:
        return options | {"num_replicas": policy.replicas}
    scaling = policy.autoscaling
    return options | {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_seconds,
            downscale_delay_s=scaling.downscale_delay_seconds,
        )
    }
