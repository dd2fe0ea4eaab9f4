"""From `RolloutClient()` to the first episode of the embedded default, phase by phase. The baseline is what Ray and Ray
Serve alone take: from `ray.init` to the first answer of an empty deployment. Each start is a process of its own."""

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
_BARE = "bare"


def run() -> bool:
    """Measure some starts by turns with bare ones, and show the median of each phase."""
    pairs = [(_start(), _start(_BARE)) for _ in range(_STARTS)]
    starts, bare = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    base_seconds, base_cpu = _median(bare, _TOTAL)
    rows = []
    for name in starts[0]:
        seconds, cpu = _median(starts, name)
        shown = f"{seconds:.1f} s, {cpu:.1f} CPU s"
        if name != _TOTAL:
            rows.append(Row(name, shown, "", "", "", True))
            continue
        baseline = f"{base_seconds:.1f} s, {base_cpu:.1f} CPU s"
        ratio, target = f"{seconds / base_seconds:.2f}", f"≤ {_TARGET_SECONDS:g} s"
        rows.append(Row(name, shown, baseline, ratio, target, seconds <= _TARGET_SECONDS))
    return show("Start of the embedded default, and of Ray and Ray Serve alone; CPU seconds of all processes", rows)


Phases = dict[str, dict[str, float]]


def _median(starts: list[Phases], name: str) -> tuple[float, float]:
    """Median wall-clock and CPU seconds of the phase."""
    return statistics.median(s[name]["seconds"] for s in starts), statistics.median(s[name]["cpu"] for s in starts)


def _start(*arguments: str) -> Phases:
    command = [sys.executable, "-m", "tests.benchmarks.start", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class _Phases:
    """Wall-clock and CPU seconds of phases, which may lie within each other."""

    def __init__(self) -> None:
        self.found: Phases = {}

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


def _measured() -> Phases:
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


def _measured_bare() -> Phases:
    phases = _Phases()
    phases.measure(_TOTAL, _first_answer)
    return phases.found


def _first_answer() -> None:
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Empty:
        def __call__(self) -> None:
            """Answer nothing."""

    serve.start(proxy_location="Disabled")
    serve.run(Empty.bind(), route_prefix=None).remote().result()


if __name__ == "__main__":
    print(json.dumps(_measured_bare() if _BARE in sys.argv else _measured()))
