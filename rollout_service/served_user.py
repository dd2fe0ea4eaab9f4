"""The user simulator's model that the service itself serves: its Serve application, and how episodes reach it.

Invariant: episodes know it only as an endpoint like any other: a model's name, an address, and a key's variable. All
processes derive the same from the settings. They ask the node that they run on, because Ray Serve answers on each.
"""

from __future__ import annotations

import contextlib
import ipaddress
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rollout_service.config import RolloutConfig
from rollout_service.config.price import Price
from rollout_service.config.user_server import UserServer
from rollout_service.errors import CodecError, ConfigError

SESSION_HEADER = "x-session-id"
"""Header by which Ray Serve keeps the requests of a conversation on one replica."""


def application_name(service: str) -> str:
    """Name of the Serve application that serves it."""
    return f"{service}-user"


def route(service: str) -> str:
    """Where it is below Serve's address."""
    return f"/{urllib.parse.quote(application_name(service), safe='')}"


def model_name(server: UserServer) -> str:
    """The model's name in requests: a hub name, or the last part of a folder's path."""
    return Path(server.model).name if Path(server.model).is_absolute() else server.model


def as_called(config: RolloutConfig) -> RolloutConfig:
    """The configuration with the user's settings as episodes use them. The same, if the service serves no user."""
    user, address = config.user, config.http_address
    if user.serve is None or address is None:
        return config
    host, port = address
    changed: dict[str, Any] = {
        "model": f"openai/{model_name(user.serve)}",
        "base_url": f"http://{_from_here(host)}:{port}{route(config.service.name)}/v1",
        "api_key_var": user.key_var,
    }
    if user.price.prompt_usd is None:
        changed["price"] = Price(prompt_usd=0.0, completion_usd=0.0)  # nobody sends a bill
    return config.model_copy(update={"user": user.model_copy(update=changed)})


def described(config: RolloutConfig) -> dict[str, Any] | None:
    """What a service's status says of it; None: the service serves none."""
    if not config.serves_user or config.user.serve is None:
        return None
    server = config.user.serve
    return {
        "application": application_name(config.service.name),
        "model": server.model,
        "engine": server.engine,
        "replicas": server.replicas,
    }


def _from_here(host: str) -> str:
    """The host by which a process on a node reaches Serve there."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"


@contextlib.contextmanager
def in_own_words() -> Iterator[None]:
    """An error about the policy's settings, which `UserServer.as_policy` made, names those in `user.serve` instead."""
    try:
        yield
    except (ConfigError, CodecError) as error:
        said = (text.replace("policy.", "user.serve.") for text in (error.problem, error.remedy))
        raise type(error)(*said) from error.__cause__
