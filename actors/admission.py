"""Admission: holds episodes back while the replicas' memory for keys and values has no room for them.

Invariant: `rollout_service.admission` decides the limit; this only asks the replicas, and tells the scheduler. What the
replicas do not say holds nothing back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

import rollout_service.logs as logs
from actors.attempt import Ending
from rollout_service.admission.controller import STALE_SECONDS, Controller
from rollout_service.collecting.scheduler import Scheduler
from rollout_service.collecting.waits import NO_ROOM, NO_SLOT
from rollout_service.config.policy import PolicyConfig
from rollout_service.errors import RolloutError
from rollout_service.policy.fleet import FleetHandle

_log = logs.logger(__name__)

_LOOK_SECONDS = 2.0
"""Time between two looks while episodes run."""

_ANSWER_SECONDS = 10.0
"""How long the replicas may take to answer."""


class Admission:
    """Of one coordinator."""

    def __init__(self, policy: PolicyConfig, scheduler: Scheduler, pump: Callable[[], None]) -> None:
        """
        Args:
            pump: starts what can start.
        """
        # Autoscaling goes by the turns in flight: if episodes were held back, it would take replicas away.
        self._watches = policy.engine == "sglang" and policy.admission == "cache" and policy.autoscaling is None
        self._scheduler = scheduler
        self._pump = pump
        self._controller = Controller()
        self._heard_at = time.monotonic()
        """When the replicas gave figures last, or when there was no episode to ask for."""
        self._is_warned = False

    async def run(self, fleet: FleetHandle) -> None:
        """Look every few seconds until cancelled."""
        while self._watches:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if self._scheduler.running:
                    await self.look(fleet)
                else:
                    self._heard_at = time.monotonic()
            except Exception as error:  # a look that fails must not be the last one
                _log.warning("Looking at the replicas' memory failed.", exc_info=error)

    async def look(self, fleet: FleetHandle) -> None:
        """Ask the replicas once."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                states = await fleet.replicas.remote()
        except (RayError, RolloutError, TimeoutError):
            states = []
        now = time.monotonic()
        said = {state.replica: state.occupancy for state in states}
        self._scheduler.limit = limit = self._controller.observe(said, self._scheduler.running, now)
        if said and all(each is not None and each.cache is not None for each in said.values()):
            self._heard_at, self._is_warned = now, False
        elif not self._is_warned and now - self._heard_at > STALE_SECONDS:
            self._is_warned = True
            _log.warning("The replicas say nothing of their memory for keys and values: no episode waits for it.")
        if self._scheduler.is_held and logs.rate_limit.is_due(kind := "held back by the replicas' memory"):
            text = "At most %s episodes are in flight: evicted prefixes took %.0f %% of the replicas' time (%s tokens)."
            _log.info(text, limit, 100 * self._controller.lost, self._controller.capacity, extra=logs.event(kind))
        self._pump()

    def ended(self, ending: Ending) -> None:
        """Take that an attempt ended."""
        if ending.result is not None and ending.fault is None:
            self._controller.ended(ending.result[0].context_tokens)

    def reason(self, held_back: str | None) -> str | None:
        """Why a collection starts nothing, which by itself would wait for a slot."""
        return NO_ROOM if held_back == NO_SLOT and self._scheduler.is_held else held_back

    def status(self) -> dict[str, Any] | None:
        """What `Coordinator.status` says of it; None: episodes wait for slots only."""
        if not self._watches:
            return None
        return {
            "limit": self._scheduler.limit,
            "lost_share": round(self._controller.lost, 3),
            "capacity_tokens": self._controller.capacity,
            "tokens_per_episode": self._controller.tokens_per_episode,
        }
