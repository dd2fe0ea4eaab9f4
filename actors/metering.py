"""Metering: what a coordinator counts and measures.

Invariant: each attempt is counted once when it ends, and each episode once when it is done. What the service holds is
looked at every few seconds, so a collection that is over is in no number any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from ray.exceptions import RayError

import actors.exporter as exporter
from actors import pacer
from actors.attempt import Ending
from actors.policy_view import PolicyView
from actors.pool import ActorPool
from actors.running import RunningCollection
from rollout_service.collecting.collection import Collection
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.collecting.scheduler import Scheduler
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.collecting.tally import Tally
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError
from rollout_service.metrics.measures import count_attempt, count_episode
from rollout_service.metrics.meter import Reading, ordered
from rollout_service.metrics.table import REASONS
from rollout_service.policy.fleet import FleetHandle

_LOOK_SECONDS = 5.0
"""Time between two looks. Ray exports every 10 s by default."""

_FLEET_SECONDS = 5.0
"""How long the fleet may take to answer with its numbers."""


class Metering:
    """The meter of one coordinator, and its tally."""

    def __init__(
        self,
        config: RolloutConfig,
        pool: ActorPool,
        scheduler: Scheduler,
        collections: Mapping[str, RunningCollection],
        policy: PolicyView,
    ) -> None:
        """
        Args:
            collections: those that are open, by id.
        """
        self.tally = Tally()
        self._config = config
        self._pool = pool
        self._scheduler = scheduler
        self._collections = collections
        self._policy = policy
        self._meter = exporter.meter(config)
        self._over = {"retries": 0, "late": 0, "withheld": 0}
        """Counts of the collections that are not open any more."""

    async def run(self) -> None:
        """Look every few seconds, for the export."""
        while self._config.service.metrics:
            await self._look()
            await asyncio.sleep(_LOOK_SECONDS)

    def ended(self, request: EpisodeRequest, ending: Ending) -> None:
        """Count the end of an attempt, whatever becomes of it."""
        if ending.fault is not None:
            self.tally.add_fault(ending.fault)
            self._meter.add("faults_total", kind=str(ending.fault.kind))
        if ending.result is not None:
            self.tally.add_attempt(ending.result[0])
            count_attempt(self._meter, request.task.domain, ending.result[0])

    def done(self, request: EpisodeRequest, summary: EpisodeSummary, earlier: EpisodeSummary | None) -> None:
        """Count an episode that is done.

        Args:
            earlier: as for `Tally.add_result`.
        """
        self.tally.add_result(summary, earlier)
        count_episode(self._meter, request.task.domain, summary, self._policy.version)

    def forget(self, collection: Collection) -> None:
        """Take that a collection is not open any more."""
        self._over["retries"] += collection.retries
        self._over["late"] += collection.late
        self._over["withheld"] += collection.shelf.withheld

    @property
    def late(self) -> int:
        """Trajectories that were too old, over all collections."""
        return self._over["late"] + sum(running.collection.late for running in self._collections.values())

    async def readings(self, fleet: FleetHandle | None) -> list[Reading]:
        """All numbers of the service now, those of its fleet and replicas included if they answer."""
        await self._look()
        found: list[Reading] = []
        if fleet is not None:
            with contextlib.suppress(RayError, RolloutError, TimeoutError):
                async with asyncio.timeout(_FLEET_SECONDS):
                    found = await fleet.metrics.remote()
        return ordered([*self._meter.readings(), *found])

    async def _look(self) -> None:
        meter, open_ones = self._meter, self._collections.values()
        meter.reach("retries_total", self._over["retries"] + sum(each.collection.retries for each in open_ones))
        meter.reach("late_total", self.late)
        withheld = sum(each.collection.shelf.withheld for each in open_ones)
        meter.reach("withheld_total", self._over["withheld"] + withheld)
        meter.reach("lost_actors_total", self._pool.lost)
        for name, value in {
            "actors": len(self._pool),
            "slots": self._scheduler.slots,
            "running": self._scheduler.running,
            "admitted": min(self._scheduler.slots, self._scheduler.limit or self._scheduler.slots),
            "waiting": sum(each.collection.waiting for each in open_ones if each.asked is not None),
            "resting": sum(each.collection.resting for each in open_ones),
            "open_collections": len(open_ones),
            "waiting_groups": sum(len(each.collection.shelf.ready) + each.collection.ahead for each in open_ones),
            "weight_version": self._policy.version,
            "paused": int(self._policy.is_paused),
        }.items():
            meter.set(name, value)
        reasons = [self._reason(each) for each in open_ones]
        for reason in REASONS:
            meter.set("held_back", reasons.count(reason), reason=reason)
        if (user := (await pacer.numbers(self._config))["user_endpoint"]) is not None:
            for name in ("limit", "in_flight", "waiting"):
                meter.set(f"user_{name}", user[name])

    def _reason(self, running: RunningCollection) -> str | None:
        """Why no waiting episode of the collection starts; None: none waits, or they start."""
        collection = running.collection
        if running.is_parked or not (collection.waiting or collection.resting):
            return None
        if not len(self._pool):
            return "actors"
        if self._policy.is_paused:
            return "paused"
        if running.pause is not None:
            return "fault"
        if collection.held_back is not None and not collection.startable:
            return collection.held_back
        if self._scheduler.is_held:
            return "memory"
        return "slots" if self._scheduler.running >= self._scheduler.slots else None
