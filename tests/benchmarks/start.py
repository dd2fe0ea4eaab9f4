"""From `RolloutClient()` to the first episode of the embedded default, phase by phase. Each start is a process of its
own."""

from __future__ import annotations

import atexit
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.measure import Row, family_cpu_seconds, show

_STARTS = 3
_TARGET_SECONDS = 6.0
_TOTAL = "RolloutClient() to the first episode"


def run() -> bool:
    """Measure some starts, and show the median of each phase."""
    starts = [_start() for _ in range(_STARTS)]
    rows = []
    for name in starts[0]:
        seconds = statistics.median(start[name]["seconds"] for start in starts)
        cpu = statistics.median(start[name]["cpu"] for start in starts)
        whole = name == _TOTAL
        target = f"≤ {_TARGET_SECONDS:g} s" if whole else ""
        ok = seconds <= _TARGET_SECONDS or not whole
        rows.append(Row(name, f"{seconds:.1f} s", "", f"{cpu:.1f} CPU s", target, ok))
    return show("Start of the embedded default; CPU seconds of all processes meanwhile", rows)


def _start() -> dict[str, dict[str, float]]:
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.start"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class _Phases:
    """Wall-clock and CPU seconds of phases, which may lie within each other."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def measure(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work as the phase of that name."""
        self.found.setdefault(name, {})  # in the order in which phases begin
        start, cpu = time.perf_counter(), family_cpu_seconds()
        try:
            return work()
        finally:
            self.found[name] = {"seconds": time.perf_counter() - start, "cpu": family_cpu_seconds() - cpu}

    def watch(self, module: Any, function: str, name: str) -> None:
        """Measure each call of the module's function from now on."""
        original = getattr(module, function)
        setattr(module, function, lambda *args, **kwargs: self.measure(name, lambda: original(*args, **kwargs)))


def _measured() -> dict[str, dict[str, float]]:
    phases = _Phases()
    client = phases.measure("import rollout_service", _imported)
    from rollout_service import cluster, embedded

    phases.watch(embedded, "prepared", "· checks before Ray is started")
    phases.watch(cluster, "connect", "· Ray")
    phases.watch(embedded, "start", "· the service: actors and the policy's replicas")
    phases.measure(_TOTAL, lambda: _first_episode(phases, client))
    return phases.found


def _imported() -> Any:
    from rollout_service import RolloutClient

    return RolloutClient


def _first_episode(phases: _Phases, client: Any) -> None:
    service = client()
    phases.measure("· the first episode", lambda: service.collect(1, progress=False))
    atexit.register(service.close)  # not part of the start


if __name__ == "__main__":
    print(json.dumps(_measured()))
