"""Status: what a coordinator says of its actors, slots, episodes and collections.

Invariant: it says what is there, and changes nothing. The keys are described in docs/operations.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError

import rollout_service.served_user as served_user
from actors import pacer
from actors.pool import ActorPool
from actors.running import RunningCollection
from rollout_service.collecting.scheduler import Scheduler
from rollout_service.collecting.tally import Tally
from rollout_service.collecting.waits import waits_for
from rollout_service.config import RolloutConfig
from rollout_service.policy.fleet import FleetHandle


async def report(
    own: Mapping[str, Any],
    config: RolloutConfig,
    pool: ActorPool,
    scheduler: Scheduler,
    tally: Tally,
    collections: Mapping[str, RunningCollection],
) -> dict[str, Any]:
    """Counts of actors, slots and episodes, and the progress of each open collection.

    Args:
        own: what the coordinator says of itself.
    """
    places = _by_collection(await pool.places())
    status: dict[str, Any] = {
        **own,
        "user_simulator": served_user.described(config),
        **await pacer.numbers(config),
        "actors": len(pool),
        "lost_actors": pool.lost,
        "start_error": None if pool.start_error is None else str(pool.start_error),
        "slots": scheduler.slots,
        "running": scheduler.running,
        **tally.status(),
        "collections": {name: running.progress(places.get(name, [])) for name, running in collections.items()},
    }
    for name, collection in status["collections"].items():
        collection["waits_for"] = waits_for(status, name)
    return status


async def living_replicas(fleet: FleetHandle) -> str:
    """How many replicas there are, for a log line."""
    try:
        return str(len(await fleet.replicas.remote()))
    except RayError:  # Serve replaces them
        return "none that answers"


def _by_collection(places: Mapping[str, tuple[float, str]]) -> dict[str, list[tuple[float, str]]]:
    """Age in seconds and place of the running episodes of each collection, from those of each trajectory."""
    found: dict[str, list[tuple[float, str]]] = {}
    for trajectory_id, place in places.items():
        found.setdefault(trajectory_id.partition("-")[0], []).append(place)
    return found
