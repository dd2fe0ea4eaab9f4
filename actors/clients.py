"""Clients: who uses a service, and who of them fell silent.

Invariant: a client that leaves or falls silent is reported once. The `rollout_service.collecting.lease`
module decides who is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import rollout_service.logs as logs
from rollout_service.background import BackgroundTasks
from rollout_service.collecting.lease import Leases

_log = logs.logger(__name__)

_LOOKS = 20
"""Looks for lapsed leases in the time that a lease lasts."""


class Clients:
    """The clients of one service. Make and use it on one event loop."""

    def __init__(self, lease_seconds: float, gone: Callable[[str, str], None]) -> None:
        """
        Args:
            lease_seconds: silence after which a client counts as gone.
            gone: called with the id of each client that is gone, and with the reason.
        """
        self._lease_seconds = lease_seconds
        self._gone = gone
        self._leases = Leases(lease_seconds, time.monotonic())
        self._tasks = BackgroundTasks()
        self._tasks.start(self._watch(), "watching the clients' leases")

    def heard(self, client: str) -> None:
        """Note that the client is there."""
        self._leases.renew(client, time.monotonic())

    def left(self, client: str) -> None:
        """Note that the client left by itself."""
        self._leases.give_up(client)
        self._gone(client, "its client was closed")

    def silences(self) -> dict[str, float]:
        """Seconds since each client was heard last."""
        return self._leases.silences(time.monotonic())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / _LOOKS)
            for client in self._leases.lapsed(time.monotonic()):
                why = f"its client was silent for service.lease_seconds={self._lease_seconds:g}"
                _log.warning("Client %s is gone: %s.", client, why)
                self._gone(client, why)
