"""What the journal costs: an episode's part and entries, written on their own; and the same collections with and
without it, by turns, in one cluster.

CPU seconds are those of all processes. Other work on the machine still moves them by a tenth, which is more than the
journal costs: there the first figure is the one to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import ray

from rollout_service.client import RolloutClient
from rollout_service.collecting.request import CollectionRequest
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.journal.entries import Acknowledged, Asked, Delivered, Stored
from rollout_service.journal.journal import Journal
from rollout_service.journal.place import PARTS
from rollout_service.record.part_files import PartFiles
from tests.benchmarks.measure import Row, family_cpu_seconds, show
from tests.benchmarks.starvation import IN_FLIGHT, LATENCY
from tests.support.episodes import request, settings
from tests.support.episodes import run as play

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
    """Measure the writing alone, and collections with both latencies."""
    rows = []
    part, entries = asyncio.run(_alone(400))
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
        if latency is None:
            share = (part + entries) / median(without.cpu)
            shown = f"{part * 1e3:.2f} + {entries * 1e3:.2f} ms", f"{median(without.cpu) * 1e3:.2f} ms", f"{share:.3f}"
            rows.append(Row("part and entries alone: share of an episode's CPU", *shown, "≤ 0.02", share <= 0.02))
    ray.shutdown()
    return show("With a journal against without one", rows)


async def _alone(episodes: int) -> tuple[float, float]:
    """CPU seconds of an episode's part and of its entries, in groups of one that a reader takes at once."""
    trajectory = play(_DOMAIN, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = Journal(folder, "benchmark")
        requests = [request(trajectory.task, number) for number in range(episodes)]
        journal.record(Asked("c", "client", CollectionRequest(n=episodes), requests, (), 0, None))
        await journal.durable()
        begun = time.process_time()
        parts, files = [], PartFiles(folder / PARTS, "n" * 56)
        for number in range(episodes):
            trajectory.trajectory_id = f"t-{number}"
            parts.append(files.write(trajectory))
        written = time.process_time()
        summary = EpisodeSummary.of(trajectory)
        for number, part in enumerate(parts):
            journal.record(Stored("c", number, 1, replace(summary, part=part)))
            journal.record(Delivered("c", number))
            await journal.durable()
            journal.record(Acknowledged("c", (number,)))
        await journal.durable()
        ended = time.process_time()
        journal.close()
    return (written - begun) / episodes, (ended - written) / episodes


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
