"""`python -m tests.chaos.soak --minutes 30`: collections at full rate, one after the other, and the memory of each kind
of process every few seconds. Prints each kind's memory and its slope per hour. Of the service's own actors it also
prints what their allocators hold: what is in use and grows is kept by somebody; what is free and grows was fragmented.

Invariant: what grows with the first episodes (caches, imports, Ray's pools of idle workers) is not counted: the slope
is of the samples after the warm-up, a fifth of the time.
"""

from __future__ import annotations

import argparse
import csv
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import ray
from rich.console import Console
from rich.table import Table

import rollout_service.services as services
from rollout_service.client import RolloutClient
from tests.benchmarks.measure import family
from tests.chaos.heap import Heap
from tests.chaos.schedule import DOMAINS
from tests.support.episodes import settings

_KINDS = {
    "coordinator": ("ray::Coordinator",),
    "fleet": ("ray::Fleet",),
    "environment actors": ("ray::EnvironmentActor",),
    "policy replicas": ("ray::ServeReplica",),
    "Serve controller": ("ray::ServeController",),
    "raylet": ("raylet",),
    "GCS": ("gcs_server",),
}
"""How the titles of each kind's processes begin, or their programs are called."""

_WARM_UP = 0.2


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at one time."""

    seconds: float
    """Since the first collection."""
    kind: str
    pss: int
    """Bytes, memory that several processes share counted in parts; Ray's object store is in it."""
    rss: int
    """Bytes that are not shared with the object store: resident, less shared."""


def main() -> None:
    """Run for so many minutes and show the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description="Memory at full rate.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--episodes", type=int, default=500, help="episodes of one collection")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="where the samples go, too")
    arguments = parser.parse_args()
    samples: list[Sample] = []
    done = threading.Event()
    overrides = {"service__actors": arguments.actors, "service__max_buffered_groups": 256}
    with RolloutClient(config=settings(**overrides)) as client:
        begun = time.monotonic()
        watcher = threading.Thread(target=_watch, args=(samples, done, begun, arguments.every), daemon=True)
        watcher.start()
        episodes, rewards, heaps = 0, set(), []
        try:
            while (seconds := time.monotonic() - begun) < 60 * arguments.minutes:
                if not heaps and seconds >= 60 * arguments.minutes * _WARM_UP:
                    heaps.append((episodes, _heaps(client)))
                for group in client.stream(arguments.episodes, group_size=2, domain=dict(DOMAINS), split="base"):
                    episodes += len(group)
                    rewards |= {trajectory.reward for trajectory in group}
        finally:
            seconds = time.monotonic() - begun
            heaps.append((episodes, _heaps(client)))
            done.set()
            watcher.join()
            if arguments.csv is not None:
                _store(samples, arguments.csv)
            title = f"{episodes} episodes in {seconds / 60:.1f} minutes, {episodes / seconds:.1f} a second"
            _show(samples, f"{title}; rewards: {sorted(rewards, key=str)}")
            _show_heaps(heaps[0], heaps[-1])


def _heaps(client: RolloutClient) -> dict[str, Heap]:
    """Of each actor of the service, by its name."""
    service = client.config.service
    found = sorted(services.find_actors(service.name, service.namespace))
    asked = [ray.get_actor(name, namespace=service.namespace).__ray_call__.remote(Heap.of) for name in found]
    return dict(zip(found, ray.get(asked), strict=True))


def _watch(samples: list[Sample], done: threading.Event, begun: float, every: float) -> None:
    while not done.wait(every):
        samples += _memory(time.monotonic() - begun)


def _memory(seconds: float) -> list[Sample]:
    """One sample of each kind that runs."""
    found: dict[str, tuple[int, int]] = {}
    own = psutil.Process().pid
    for process in family():
        try:
            kind = "this process" if process.pid == own else _kind(process)
            if kind is None:
                continue
            memory = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        pss, rss = found.get(kind, (0, 0))
        found[kind] = pss + memory.pss, rss + memory.rss - memory.shared
    return [Sample(seconds, kind, pss, rss) for kind, (pss, rss) in found.items()]


def _kind(process: psutil.Process) -> str | None:
    title = " ".join(process.cmdline())
    program = Path(title.split(" ")[0]).name
    return next((kind for kind, begins in _KINDS.items() if title.startswith(begins) or program in begins), None)


def slope(seconds: Sequence[float], sizes: Sequence[int]) -> float:
    """Bytes per hour: the median of the slopes between all pairs of samples (Theil and Sen), which a few garbage
    collections do not move. 0 with fewer than two samples."""
    first, second = np.triu_indices(len(seconds), 1)
    if not len(first):
        return 0.0
    at, size = np.asarray(seconds), np.asarray(sizes, dtype=float)
    return float(np.median((size[second] - size[first]) / (at[second] - at[first])) * 3600)


def _show(samples: Sequence[Sample], title: str) -> None:
    table = Table("process", "first", "last", "most", "slope per hour", "own memory: last", "slope", title=title)
    until = max((sample.seconds for sample in samples), default=0.0) * _WARM_UP
    for kind in dict.fromkeys(sample.kind for sample in samples):
        warm = [sample for sample in samples if sample.kind == kind and sample.seconds >= until]
        if not warm:
            continue
        at, pss, rss = [s.seconds for s in warm], [s.pss for s in warm], [s.rss for s in warm]
        row = [pss[0], pss[-1], max(pss), slope(at, pss), rss[-1], slope(at, rss)]
        table.add_row(kind, *(f"{size / 2**20:,.1f} MiB" for size in row))
    Console(width=140).print(table)


def _show_heaps(first: tuple[int, dict[str, Heap]], last: tuple[int, dict[str, Heap]]) -> None:
    columns = ("malloc in use", "bytes an episode", "malloc free", "Python objects", "an episode")
    title = f"what the allocators hold, from episode {first[0]} to episode {last[0]}"
    table, episodes = Table("actor", *columns, title=title), max(1, last[0] - first[0])
    for name in [name for name in first[1] if name in last[1]]:
        before, after = first[1][name], last[1][name]
        sizes = [
            f"{one / 2**20:.2f} → {other / 2**20:.2f} MiB"
            for one, other in ((before.used, after.used), (before.free, after.free))
        ]
        table.add_row(
            name,
            sizes[0],
            f"{(after.used - before.used) / episodes:.1f}",
            sizes[1],
            f"{before.blocks:,} → {after.blocks:,}",
            f"{(after.blocks - before.blocks) / episodes:.2f}",
        )
    Console(width=140).print(table)


def _store(samples: Sequence[Sample], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "kind", "pss", "rss"])
        writer.writerows((f"{s.seconds:.1f}", s.kind, s.pss, s.rss) for s in samples)


if __name__ == "__main__":
    main()
