"""What an external endpoint says about itself, asked before any episode starts.

Invariant: nothing is assumed about a server. Its context length is what the server or the configuration says.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import aiohttp

import rollout_service.logs as logs
from rollout_service.config import PolicyConfig
from rollout_service.errors import ConfigError, ServiceError, first_line
from rollout_service.policy.context import only_endpoint_knows
from rollout_service.policy.patience import BUSY, LostTurnError, Patience
from rollout_service.redaction import safe_cause

_log = logs.logger(__name__)

_PATHS = ("/server_info", "/get_server_info", "/model_info", "/get_model_info", "/v1/models")
"""SGLang's paths, new and old. vLLM has the last one too. A router passes some of them on."""

_LENGTHS = ("max_req_input_len", "context_length", "max_model_len", "max_total_tokens")
"""Names of the field with the context length. The first, from SGLang's scheduler, also respects its cache size."""

_SECONDS = 10.0
"""The longest wait for one answer."""


async def settled(policy: PolicyConfig, retry_seconds: float | None = None) -> PolicyConfig:
    """The settings, with `context_length` as the endpoint says it if the settings leave it open.

    Args:
        retry_seconds: how long to retry an endpoint that cannot be reached; None: `policy.retry_seconds`.

    Raises:
        ConfigError: the endpoint does not say its context length.
        ServiceError: it cannot be reached.
    """
    if not only_endpoint_knows(policy):
        return policy
    url = str(policy.url).rstrip("/")
    seconds = policy.retry_seconds if retry_seconds is None else retry_seconds
    try:
        length = await Patience(seconds).retry_lost_turn(lambda: _context_length(url))
    except (aiohttp.ClientError, OSError) as error:
        raise ServiceError(
            f"policy.url: {url} cannot be asked how many tokens it takes: {first_line(error)}.",
            "Start it first, or set policy.context_length.",
        ) from safe_cause(error)
    if length is None:
        raise ConfigError(
            f"policy.context_length is not set, and the endpoint at {url} does not say how many tokens it takes.",
            "Set it to what the server behind it takes, prompt and turn together.",
        )
    _log.info("The policy's endpoint %s takes %d tokens, prompt and turn together.", url, length)
    return policy.model_copy(update={"context_length": length})


async def _context_length(url: str) -> int | None:
    """The smallest length in the endpoint's first answer that has one.

    Raises:
        LostTurnError: nothing answers, or the endpoint has no server yet.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session:
        for path in _PATHS:
            try:
                async with session.get(url + path) as response:
                    if response.status in BUSY:
                        raise LostTurnError from ConnectionError(f"it answers {response.status} {response.reason}")
                    said = await response.json(content_type=None) if response.status == HTTPStatus.OK else None
            except ValueError:  # not JSON
                continue
            except (aiohttp.ClientError, OSError) as error:
                raise LostTurnError from error
            if lengths := list(_lengths(said)):
                return min(lengths)
    return None


def _lengths(said: Any) -> Iterator[int]:
    """Every length in an answer: in its own fields and in those of the models that it lists."""
    models = said.get("data") if isinstance(said, dict) else None
    for item in [said, *(models if isinstance(models, list) else [])]:
        if isinstance(item, dict):
            yield from (item[name] for name in _LENGTHS if type(item.get(name)) is int and item[name] > 0)
