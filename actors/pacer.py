"""Pacer: shares the requests that may be in flight towards the user simulator's endpoint among environment actors.

Invariant: it decides nothing itself, see `rollout_service.pacing`. Nothing is lost with it: an environment actor goes
on with the places that it has, and Ray starts another pacer, which learns the rest from the next reports.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

import rollout_service.cluster as cluster
import rollout_service.logs as logs
from rollout_service.cluster import RemoteMethod
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError
from rollout_service.pacing.controller import Controller
from rollout_service.pacing.gate import NOTICE_SECONDS, Gate
from rollout_service.pacing.shares import Grant, Report, Shares

_EXCHANGE_SECONDS = 2.0
"""How long the pacer may take to answer. An environment actor needs no answer to go on."""


class Pacer:
    """Divides the places of one endpoint. An async Ray actor."""

    def __init__(self, config: RolloutConfig) -> None:
        logs.configure(config.service.log_level)
        user = config.user
        self._shares = Shares(Controller(user.max_concurrency, user.max_retry_wait_seconds, NOTICE_SECONDS))

    async def report(self, name: str, report: Report) -> Grant:
        """Take the report of the environment actor of this name, see `Shares.report`."""
        return self._shares.report(name, report, time.monotonic())

    async def status(self) -> dict[str, Any]:
        """The endpoint's numbers, see `Shares.status`."""
        return self._shares.status(time.monotonic())


class PacerHandle(Protocol):
    """Handle of a `Pacer`. Each method is described there."""

    report: RemoteMethod[[str, Report], Grant]
    status: RemoteMethod[[], dict[str, Any]]


class Reporter:
    """Brings an environment actor's reports to the service's pacer. Used by one thread."""

    def __init__(self, config: RolloutConfig, name: str) -> None:
        """
        Args:
            name: of the environment actor.
        """
        self._service = config.service
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
        grant: Grant = ray.get(self._pacer.report.remote(self._name, report), timeout=_EXCHANGE_SECONDS)
        return grant


async def numbers(config: RolloutConfig) -> dict[str, Any] | None:
    """What the service's pacer says of the user's endpoint, see `Shares.status`. None: no language model plays the
    user, or there is no answer."""
    if config.user_kind != "llm":
        return None
    name, namespace = cluster.pacer_name(config.service.name), config.service.namespace
    try:
        async with asyncio.timeout(_EXCHANGE_SECONDS):
            found: PacerHandle | None = await asyncio.to_thread(cluster.find, name, namespace)
            return None if found is None else await found.status.remote()
    except (RayError, TimeoutError):
        return None


def gate(config: RolloutConfig, name: str) -> Gate | None:
    """The gate of an environment actor towards its user simulator's endpoint. None: nobody calls one."""
    if config.user_kind != "llm":
        return None
    user = config.user
    give_up_seconds = config.service.give_up_seconds
    return Gate(user.max_concurrency, user.max_retry_wait_seconds, give_up_seconds, Reporter(config, name))
