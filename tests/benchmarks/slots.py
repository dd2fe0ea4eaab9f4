"""How many actors for 64 retail episodes in flight on this machine's cores. No target: it shows what to choose."""

from __future__ import annotations

import ray

from tests.benchmarks.measure import Row, show
from tests.benchmarks.starvation import IN_FLIGHT, steady_state


def run() -> bool:
    """Measure 1, 2, 4 and 8 actors."""
    ray.init("local", num_cpus=9, namespace="rollout_service", include_dashboard=False, log_to_driver=False)
    rows = []
    for actors in (1, 2, 4, 8):
        it = steady_state("retail", 250, actors)
        rows.append(
            Row(
                f"{actors} actors of {IN_FLIGHT // actors} slots: turns per second",
                f"{it.rate:.1f}",
                f"{it.ideal:.1f} ideal",
                f"{it.rate / it.ideal:.3f}",
                f"calls late by {it.middle:.1f} ms (median), {it.late:.1f} ms (p99)",
                True,
            )
        )
    ray.shutdown()
    return show("Actors and slots", rows)
