"""What the journal costs: the same collections with and without it, by turns, in one cluster.

CPU seconds are those of all processes, so other work on the machine hardly moves them.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import ray

from rollout_service.client import RolloutClient
from tests.benchmarks.measure import Row, family_cpu_seconds, show
from tests.benchmarks.starvation import IN_FLIGHT, LATENCY
from tests.support.episodes import settings

_DOMAIN = "retail"
_ROUNDS = 5
_LATENCIES = {"no latency": (None, 300, 1.02), "policy latency 0.5 to 1.5 s": (LATENCY, 128, 1.01)}
"""Latency of the policy, episodes of a collection, and how dear the journal may make an episode."""


@dataclass
class Turns:
    """What one of the two services took, collection by collection."""

    cpu: list[float] = field(default_factory=list)
    """CPU seconds of an episode."""
    wall: list[float] = field(default_factory=list)
    """Seconds of an episode."""


def run() -> bool:
    """Measure with both latencies."""
    rows = []
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    for name, (latency, episodes, most) in _LATENCIES.items():
        without, with_journal = _by_turns(latency, episodes)
        ratio = median(map(_over, with_journal.cpu, without.cpu))
        print(f"{name}: CPU seconds of an episode without {without.cpu}, with {with_journal.cpu}", flush=True)
        rows.append(
            Row(
                f"{_DOMAIN}, {name}: CPU per episode, {_ROUNDS} turns of {episodes}",
                f"{median(with_journal.cpu) * 1e3:.2f} ms",
                f"{median(without.cpu) * 1e3:.2f} ms",
                f"{ratio:.3f}",
                f"≤ {most}",
                ratio <= most,
            )
        )
        rate = 1 / median(with_journal.wall), 1 / median(without.wall)
        faster = 1 / median(map(_over, with_journal.wall, without.wall))
        shown = f"{rate[0]:.1f}/s", f"{rate[1]:.1f}/s", f"{faster:.3f}"
        rows.append(Row(f"{_DOMAIN}, {name}: episodes per second", *shown, "", True))
    ray.shutdown()
    return show("With a journal against without one", rows)


def _over(first: float, second: float) -> float:
    return first / second


def _by_turns(latency: dict[str, object] | None, episodes: int) -> tuple[Turns, Turns]:
    """Collections without and with a journal, by turns; the first of each only warms up."""
    without, with_journal = Turns(), Turns()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        both = [
            (without, stack.enter_context(_service("without", latency, None))),
            (with_journal, stack.enter_context(_service("with-journal", latency, Path(folder)))),
        ]
        for turn in range(_ROUNDS + 1):
            for turns, client in both if turn % 2 else reversed(both):
                cpu, wall = family_cpu_seconds(), time.perf_counter()
                client.collect(episodes, seed=turn, progress=False)
                if turn:
                    turns.cpu.append((family_cpu_seconds() - cpu) / episodes)
                    turns.wall.append((time.perf_counter() - wall) / episodes)
    return without, with_journal


def _service(name: str, latency: dict[str, object] | None, journal: Path | None) -> RolloutClient:
    overrides = {
        "service__name": name,
        "service__actors": 1,
        "service__max_buffered_groups": 1000,
        "tasks__domain": _DOMAIN,
        "service__journal": None if journal is None else str(journal),
    }
    if latency is not None:
        overrides |= {"policy__script": {"latency": latency}, "service__slots": IN_FLIGHT}
    return RolloutClient(config=settings(**overrides))
