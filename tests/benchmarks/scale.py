"""How many episodes at a time: 1,000 of telecom and 300 of airline on two cores, and the memory they take."""

from __future__ import annotations

import threading
import time

from rollout_service.client import RolloutClient
from tests.benchmarks.measure import Row, family_memory, show
from tests.support.episodes import settings

_IN_FLIGHT = {"telecom": 1000, "airline": 300}
_LIMIT = 24 * 2**30
_USER = {"latency": {"mean": 1.0}}
_POLICY = {"latency": {"distribution": "uniform", "mean": 1.0, "spread": 0.5}}


def run() -> bool:
    """Measure both domains."""
    return show("Episodes at a time, user latency 1 s, policy latency 0.5 to 1.5 s", [_measure(n) for n in _IN_FLIGHT])


def _measure(name: str) -> Row:
    in_flight = _IN_FLIGHT[name]
    config = settings(
        tasks__domain=name,
        policy__script=_POLICY,
        user__script=_USER,
        service__actors=2,
        service__slots=in_flight // 2,
        service__max_buffered_groups=10_000,
    )
    before: dict[str, int] = {}
    peak: dict[str, int] = {}
    most = 0
    done = threading.Event()
    with RolloutClient(config=config) as client:
        client.collect(8, progress=False)
        before = family_memory()

        def watch() -> None:
            nonlocal peak, most
            while not done.wait(1.0):
                most = max(most, client.status()["running"])
                now = family_memory()
                peak = max(peak, now, key=lambda sizes: sum(sizes.values()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        try:
            batch = client.collect(2 * in_flight, progress=False)
        finally:
            done.set()
            watcher.join()
        seconds = time.perf_counter() - start
    assert {trajectory.reward for trajectory in batch} == {1.0}
    whole, actors = sum(peak.values()), "EnvironmentActor"
    grown = (peak.get(actors, 0) - before.get(actors, 0)) / in_flight
    gibibytes = whole / 2**30
    return Row(
        f"{name}: {most} in flight at most, {2 * in_flight} in {seconds:.0f} s",
        f"{gibibytes:.2f} GiB at peak",
        f"{sum(before.values()) / 2**30:.2f} GiB idle",
        f"{grown / 2**20:.2f} MiB per episode in the actors",
        f"{in_flight} in ≤ 24 GiB",
        most >= in_flight * 0.98 and whole <= _LIMIT,
    )
