"""Status: what a coordinator says of its actors, slots, episodes and collections.

Invariant: it says what is there, and changes nothing. The keys are described in docs/operations.md.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError

import rollout_service.logs as logs
import rollout_service.served_user as served_user
from actors import filtering, pacer
from actors.pool import ActorPool
from actors.running import RunningCollection
from rollout_service.collecting.scheduler import Scheduler
from rollout_service.collecting.tally import Tally
from rollout_service.collecting.waits import waits_for
from rollout_service.config import RolloutConfig
from rollout_service.policy.fleet import FleetHandle

_log = logs.logger(__name__)


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
        "collections": {name: progress(running, places.get(name, [])) for name, running in collections.items()},
    }
    for name, collection in status["collections"].items():
        collection["waits_for"] = waits_for(status, name)
    return status


def progress(running: RunningCollection, places: list[tuple[float, str]]) -> dict[str, Any]:
    """What `Coordinator.status` says of the collection. A mean is over the `scored` episodes only, which may be few of
    those that are done.

    Args:
        places: age in seconds and place of its running episodes.
    """
    collection = running.collection
    rewards = [reward for episode, reward in running.rewards.items() if collection.state(episode).done]
    return {
        "client": running.client,
        "parked": running.is_parked,
        "kept_seconds": None if running.kept_until is None else max(0.0, running.kept_until - time.monotonic()),
        "episodes": running.asked,
        "done": collection.done,
        "scored": len(rewards),
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
        "waiting": None if running.asked is None else collection.waiting,
        "running": running.active,
        "places": dict(Counter(place for _, place in places)),
        "oldest_seconds": max((age for age, _ in places), default=None),
        "to_be_tried_again": collection.resting,
        "held_back": collection.held_back,
        "ready": len(collection.shelf.ready) + collection.ahead,
        "taken": collection.shelf.taken,
        "groups_per_update": collection.staleness.groups_per_update,
        "withheld": collection.shelf.withheld,
        "withheld_in_a_row": collection.shelf.withheld_in_a_row,
        "limit": running.limit,
        "paused_by": running.pause,
        "quarantined": [running.requests[episode].trajectory_id for episode in collection.quarantined],
        "retries": collection.retries,
        "failed": collection.failed,
        "late": collection.late,
        "groups": filtering.counts(running),
        "sampler": running.drawing.facts(),
    }


async def log_start(config: RolloutConfig, fleet: FleetHandle | None, actors: int, seconds: float, phases: str) -> None:
    """Log with what the service is up.

    Args:
        fleet: None: the policy's replicas are behind an endpoint.
        actors: number of environment actors.
        seconds: how long the start took.
        phases: where the seconds went.
    """
    policy, service = config.policy, config.service
    replicas = f"those behind {policy.url}" if fleet is None else await _living_replicas(fleet)
    text = "Service %s is up after %.1f s; policy: %s, replicas: %s, environment actors: %d, slots: %d. Start: %s."
    _log.info(text, service.name, seconds, policy.serves, replicas, actors, actors * service.slots, phases)


async def _living_replicas(fleet: FleetHandle) -> str:
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
