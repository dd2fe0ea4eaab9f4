"""Pacer: shares the requests that may be in flight towards the user simulator's and the judge's endpoints among
environment actors.

Invariant: it decides nothing itself, see `rollout_service.pacing`. Nothing is lost with it: an environment actor goes
on with the places that it has, and Ray starts another pacer, which learns the rest from the next reports.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Mapping
from typing import Any, Protocol, get_args

import ray
from ray.exceptions import RayActorError, RayError

import rollout_service.cluster as cluster
import rollout_service.logs as logs
from rollout_service.cluster import RemoteMethod
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError
from rollout_service.pacing import endpoints
from rollout_service.pacing.endpoints import Side
from rollout_service.pacing.gate import Gate
from rollout_service.pacing.shares import Grant, Report, Shares

_EXCHANGE_SECONDS = 2.0
"""How long the pacer may take to answer. An environment actor needs no answer to go on."""


class Pacer:
    """Divides the places of each endpoint. An async Ray actor."""

    def __init__(self, config: RolloutConfig) -> None:
        logs.configure(config.service.log_level)
        found = endpoints.of(config)
        self._shares = {each.side: Shares(each.controller()) for each in found.values()}
        self._shared_by = {side: each.side for side, each in found.items()}

    async def report(self, endpoint: Side, name: str, report: Report) -> Grant:
        """Take the report of the environment actor of this name, see `Shares.report`.

        Args:
            endpoint: see `Endpoint.side`.
        """
        return self._shares[endpoint].report(name, report, time.monotonic())

    async def gone(self, name: str) -> None:
        """Give the places of the environment actor of this name, which has ended, to the others."""
        for shares in self._shares.values():
            shares.forget(name)

    async def status(self) -> dict[Side, dict[str, Any]]:
        """The numbers of each side's endpoint, see `Shares.status`."""
        now = time.monotonic()
        return {side: self._shares[endpoint].status(now) for side, endpoint in self._shared_by.items()}


class PacerHandle(Protocol):
    """Handle of a `Pacer`. Each method is described there."""

    report: RemoteMethod[[Side, str, Report], Grant]
    gone: RemoteMethod[[str], None]
    status: RemoteMethod[[], dict[Side, dict[str, Any]]]


class Reporter:
    """Brings an environment actor's reports on one endpoint to the service's pacer. Used by one thread."""

    def __init__(self, config: RolloutConfig, name: str, endpoint: Side) -> None:
        """
        Args:
            name: of the environment actor.
        """
        self._service = config.service
        self._endpoint = endpoint
        self._name = name
        self._pacer: PacerHandle | None = None

    def __call__(self, report: Report) -> Grant:
        """
        Raises:
            ServiceError: there is no pacer.
            RayError: it does not answer.
        """
        if self._pacer is None:
            self._pacer = cluster.find(cluster.pacer_name(self._service.name), self._service.namespace)
        if self._pacer is None:
            raise ServiceError("The service has no pacer.", "Its environment actors go on without.")
        grant: Grant = ray.get(self._pacer.report.remote(self._endpoint, self._name, report), timeout=_EXCHANGE_SECONDS)
        return grant


async def numbers(config: RolloutConfig) -> dict[str, Any]:
    """What the service's pacer says of `user_endpoint`, `judge_endpoint` and `review_endpoint`, see `Shares.status`.
    None: the side asks no language model, or there is no answer."""
    found = await _asked(config, "status") or {}
    return {f"{side}_endpoint": found.get(side) for side in get_args(Side)}


async def forget(config: RolloutConfig, name: str) -> None:
    """Tell the service's pacer that the environment actor of this name has ended. A pacer that does not hear of it
    notices the actor's silence, which takes `SILENCE_SECONDS`."""
    await _asked(config, "gone", name)


_known: dict[tuple[str, str], PacerHandle] = {}
"""Pacers that answered, by name and namespace. While the head node is gone, to find one blocks a thread for a minute,
and every few seconds somebody asks."""


async def _asked(config: RolloutConfig, method: str, *arguments: Any) -> Any:
    """What the service's pacer answers. None: it has none, or there is no answer."""
    if not endpoints.of(config):
        return None
    place = cluster.pacer_name(config.service.name), config.service.namespace
    try:
        async with asyncio.timeout(_EXCHANGE_SECONDS):
            pacer: PacerHandle | None = _known.get(place) or await asyncio.to_thread(cluster.find, *place)
            if pacer is None:
                return None
            answer = await getattr(pacer, method).remote(*arguments)
    except (RayError, TimeoutError) as error:
        if isinstance(error, RayActorError):
            _known.pop(place, None)
        return None
    _known[place] = pacer
    return answer


def gates(config: RolloutConfig, name: str) -> Mapping[Side, Gate]:
    """The gates of the environment actor of this name."""
    return endpoints.gates(config, functools.partial(Reporter, config, name))
