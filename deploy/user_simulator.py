"""The Serve application that serves the user simulator's model to the service's own episodes.

Invariant: it begins and ends with its service. Its replicas differ from the policy's in one thing: their weights never
change. So they need an engine and a codec, and nothing of the fleet but the key.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import date
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.requests import Request
from starlette.responses import Response

import rollout_service.config.secrets as secrets
import rollout_service.garbage as garbage
import rollout_service.logs as logs
import rollout_service.served_user as served_user
from deploy import application, fleet_link, serve_http
from deploy.chat_api import ChatApi
from deploy.engines import factory
from rollout_service.chat.codec import ChatCodec
from rollout_service.cluster import SERVE_ENVIRONMENT
from rollout_service.config import Evaluation, RolloutConfig
from rollout_service.config.review import Review
from rollout_service.config.user_server import UserServer
from rollout_service.errors import discreet
from rollout_service.gateway import tokens
from rollout_service.gateway.guard import Guard
from rollout_service.phases import Phases
from rollout_service.policy.context import context_length
from rollout_service.policy.replica_size import gpus
from rollout_service.redaction import keep_out_of_logs

_log = logs.logger(__name__)

_NO_LIMIT = 100_000
"""Limit on a replica's concurrent calls: in effect, none. The engine batches them, and the service's pacer bounds
them."""

_END_SECONDS = 1.0
"""Seconds until a replica with a broken engine ends, so that its error still reaches Serve."""


def begin(config: RolloutConfig) -> None:
    """Begin to start the replicas, if the service serves a user simulator.

    Raises:
        ServiceError: Serve does not take the application.
    """
    if config.user.serve is None or not config.serves_user:
        return
    serve_http.start(config)
    name = config.service.name
    own, route = served_user.application_name(name), served_user.route(name)
    application.begin(lambda: serve.RunTarget(_bound(config), own, route), "user simulator")


def wait(config: RolloutConfig) -> None:
    """Wait until the replicas answer, if there are any.

    Raises:
        ServiceError: they cannot start.
    """
    if config.user.serve is not None and config.serves_user:
        name = served_user.application_name(config.service.name)
        application.wait(config.user.serve.as_policy(), name, "user simulator", "user.serve")


def _bound(config: RolloutConfig) -> serve.Application:
    server = config.user.serve
    assert server is not None
    # Serve stores the arguments of a replica, and the addresses of judge and reviewer may contain a password.
    policy = server.as_policy().model_copy(update={"env_vars_from": config.policy.env_vars_from})
    user = config.user.model_copy(update={"review": Review()})
    own = config.model_copy(update={"policy": policy, "user": user, "evaluation": Evaluation()})
    return serve.deployment(**_options(server, config.user.timeout_seconds))(UserReplica).bind(own)


def _options(server: UserServer, timeout_seconds: float) -> dict[str, Any]:
    return {
        "name": "user",
        "num_replicas": server.replicas,
        "max_ongoing_requests": _NO_LIMIT,
        "ray_actor_options": {
            "num_cpus": server.cpus_per_replica,
            "num_gpus": gpus(server.as_policy()),
            "runtime_env": {"env_vars": SERVE_ENVIRONMENT | server.env_vars},
        },
        "request_router_config": RequestRouterConfig(request_router_class="deploy.routing:SessionRouter"),
        "graceful_shutdown_timeout_s": timeout_seconds,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 9.0,
        "max_constructor_retry_count": 3,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }


class UserReplica:
    """The class of the Serve deployment."""

    async def __init__(self, config: RolloutConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        """Start the engine.

        Args:
            config: the service's, with the user simulator's model as its policy.

        Raises:
            RolloutError: settings that cannot be used.
        """
        logs.configure(config.service.log_level)
        keep_out_of_logs("ray.serve")  # Serve logs what a call raises, with its traceback
        start = time.monotonic()
        await asyncio.to_thread(fleet_link.receive_variables, config)
        self._api = await asyncio.to_thread(self._started, config)
        _log.info("The user simulator %s answers after %.1f s.", config.policy.model, time.monotonic() - start)

    def _started(self, config: RolloutConfig) -> ChatApi:
        server = config.user.serve
        assert server is not None
        with discreet("The user simulator's engine does not start"), served_user.in_own_words():
            guard = _guard(config)
            codec = ChatCodec.of(config.policy)
            self._engine = factory.make(config, Phases())
            longest = context_length(config.policy)
        garbage.freeze()
        return ChatApi(served_user.model_name(server), self._engine, codec, longest, server.max_new_tokens, guard)

    async def __call__(self, request: Request) -> Response:
        """Answer HTTP, see `deploy.chat_api`."""
        return await self._api.respond(request)

    async def check_health(self) -> None:
        """Called by Serve every few seconds, which replaces the replica if this raises. Serve would first wait for
        requests that a broken engine cannot answer, so the replica also ends itself."""
        try:
            self._engine.check_health()
        except Exception:
            _log.exception("The replica ends itself and is replaced: its engine is broken.")
            asyncio.get_running_loop().call_later(_END_SECONDS, os._exit, 1)
            raise

    def __del__(self) -> None:
        """Called by Serve when the replica has no requests left."""
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.close()


def _guard(config: RolloutConfig) -> Guard:
    """Lets in whoever has the key.

    Raises:
        ConfigError: its environment variable is not set.
    """
    key = secrets.secret(config.user.key_var, "user.api_key_var")
    assert key is not None
    return Guard(tokens.Tokens(tokens.parsed(tokens.entry("user", ["collect"], None, key, date.today()), "key")))
