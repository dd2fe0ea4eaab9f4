"""What is measured of policy replicas and of weight updates.

Invariant: a number that an engine does not have is left out, and never written as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rollout_service.metrics.meter import Meter, Reading

if TYPE_CHECKING:
    from rollout_service.policy.replicas import ReplicaState


def count_update(meter: Meter, mode: str, seconds: float | None) -> None:
    """Count a weight update.

    Args:
        seconds: how long it took over all replicas; None: it failed.
    """
    meter.add("weight_updates_total", mode=mode, result="failed" if seconds is None else "loaded")
    if seconds is not None:
        meter.observe("weight_update_seconds", seconds, mode=mode)


def set_engine(meter: Meter, state: ReplicaState) -> None:
    """Set the gauges of one replica."""
    for reading in engine_readings([state]):
        meter.set(reading.name, reading.value)


def engine_readings(states: Sequence[ReplicaState]) -> list[Reading]:
    """The gauges of some replicas together: the sum of turns, the mean of shares, the oldest weight version."""
    if not states:
        return []
    full = [state.occupancy for state in states if state.occupancy is not None]
    found: dict[str, float] = {
        "engine_running": sum(state.running for state in states),
        "engine_weight_version": min(state.version for state in states),
    }
    if full:
        found |= {
            "engine_waiting": sum(each.waiting for each in full),
            "engine_kv_use": sum(each.kv_use for each in full) / len(full),
            "engine_cache_hits": sum(each.cache_hits for each in full) / len(full),
        }
    return [Reading(name, (), float(value)) for name, value in found.items()]
