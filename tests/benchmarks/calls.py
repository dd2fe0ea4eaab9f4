"""What Serve costs per call: our path against a bare async actor that holds the same scripted engine, in one run."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import numpy as np
import ray
from ray import serve

from deploy import policy
from deploy.engines import factory
from rollout_service.cluster import SERVE_ENVIRONMENT
from rollout_service.config import RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.phases import Phases
from rollout_service.policy.base import TurnInfo
from rollout_service.policy.serve import ServePolicy
from rollout_service.tau2 import tasks
from tests.benchmarks.measure import Row, show

IN_FLIGHT, CALLS, PROMPT_TOKENS = 64, 4000, 4000
PACE_SECONDS, PACED_CALLS = 0.02, 300
"""Below saturation: a call every 20 ms."""
LEAST_RATE, MOST_ADDED_MS = 0.8, 5.0


class BareActor:
    """The engine in an async actor, nothing around it."""

    def __init__(self, config: RolloutConfig) -> None:
        self._engine = factory.make(config, Phases())

    async def generate(self, input_ids: Any, sampling: Sampling, info: TurnInfo) -> Any:
        """Sample one turn."""
        return await self._engine.generate(input_ids, sampling, info)


class Caller:
    """A process that calls, as an environment actor does."""

    def __init__(self, bare: Any) -> None:
        self._bare = bare
        self._policy = ServePolicy("calls")
        self._prompt = np.arange(PROMPT_TOKENS, dtype=np.int32)
        self._info = TurnInfo(tasks.references("mock", "base")[0])

    async def _one(self, path: str) -> float:
        start = time.perf_counter()
        if path == "bare":
            await self._bare.generate.remote(self._prompt, Sampling(), self._info)
        else:
            await self._policy.generate(self._prompt, Sampling(), "s", self._info)
        return time.perf_counter() - start

    async def rate(self, path: str) -> float:
        """Calls per second with `IN_FLIGHT` at a time."""
        left = iter(range(CALLS))

        async def worker() -> None:
            for _ in left:
                await self._one(path)

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        return CALLS / (time.perf_counter() - start)

    async def latency(self, path: str) -> float:
        """Median seconds of a call, one every `PACE_SECONDS`."""

        async def later(seconds: float) -> float:
            await asyncio.sleep(seconds)
            return await self._one(path)

        return statistics.median(await asyncio.gather(*(later(i * PACE_SECONDS) for i in range(PACED_CALLS))))


def run() -> bool:
    """Bare, ours, bare, ours."""
    ray.init("local", num_cpus=4, namespace="rollout_service", include_dashboard=False, log_to_driver=False)
    config = RolloutConfig.load(overrides={"tasks.domain": "mock"}, environ={})
    bare = ray.remote(BareActor).options(max_concurrency=1000, num_cpus=0).remote(config)
    serve.start(proxy_location="Disabled")
    serve.run(policy.app(config), name="calls", route_prefix=None)
    caller = ray.remote(Caller).options(runtime_env={"env_vars": SERVE_ENVIRONMENT}).remote(bare)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(3):
        for path in ("bare", "ours"):
            for what in ("rate", "latency"):
                found.setdefault((path, what), []).append(ray.get(getattr(caller, what).remote(path)))
    serve.shutdown()
    ray.shutdown()
    middle = {key: statistics.median(values) for key, values in found.items()}
    ratio = middle["ours", "rate"] / middle["bare", "rate"]
    ours, theirs = middle["ours", "latency"] * 1000, middle["bare", "latency"] * 1000
    rows = [
        Row(
            f"calls/s, {IN_FLIGHT} in flight, {PROMPT_TOKENS:,}-token prompts",
            f"{middle['ours', 'rate']:,.0f}",
            f"{middle['bare', 'rate']:,.0f}",
            f"{ratio:.2f}",
            f"≥ {LEAST_RATE}",
            ratio >= LEAST_RATE,
        ),
        Row(
            f"median ms of a call, {1 / PACE_SECONDS:.0f} a second",
            f"{ours:.1f}",
            f"{theirs:.1f}",
            f"{ours - theirs:+.1f} ms",
            f"≤ +{MOST_ADDED_MS:g} ms",
            ours - theirs <= MOST_ADDED_MS,
        ),
    ]
    return show("Serve path against a bare async actor", rows)
