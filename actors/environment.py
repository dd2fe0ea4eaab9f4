"""EnvironmentActor: slots that each run one episode at a time.

Invariant: the event loop only passes policy calls on; every episode has a thread, and whatever blocks blocks there.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rollout_service.config import RolloutConfig
from rollout_service.errors import Tau2Error
from rollout_service.scheduling import EpisodeSummary
from rollout_service.trajectory import Trajectory

_GC_THRESHOLD = 10_000
"""Allocations between looks at the youngest objects; Python's 700 is for small programs."""

_START_INTERVAL = 0.02
"""Seconds between the starts of two episodes. A start is the costliest step of an episode, about 10 ms under the
interpreter's lock: when all slots start at once, the first policy calls would wait for the last start."""


class EnvironmentActor:
    """Holds τ² environments and user simulators, and runs whole episodes. An async Ray actor."""

    def __init__(self, config: RolloutConfig, application: str | None) -> None:
        """
        Args:
            application: name of the Serve application that fronts the policy; None: an endpoint does, over HTTP.
        """
        self._config = config
        self._application = application
        self._threads = ThreadPoolExecutor(config.service.slots, thread_name_prefix="slot")
        self._clocks: dict[str, Any] = {}
        self._runner: Any = None
        self._next_start = 0.0

    async def setup(self) -> dict[str, str]:
        """Import τ², read its data, load and prove the codec, find the policy. Call it once, before the first episode.

        Returns:
            A fingerprint of each configured domain's data.

        Raises:
            RolloutError: the configuration cannot be used here (tokenizer, key variable, τ² package).
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(self._make_runner, loop))

    def _make_runner(self, loop: asyncio.AbstractEventLoop) -> dict[str, str]:
        from rollout_service import policy
        from rollout_service.chat import ChatCodec
        from rollout_service.tau2.episode import EpisodeRunner

        settings = self._config.policy
        codec = ChatCodec.load(settings.tokenizer_name, tool_parser=settings.tool_parser)
        self._runner = EpisodeRunner(self._config, codec, policy.make(settings, self._application), loop)
        fingerprints: dict[str, str] = self._runner.prepare()
        # What is here by now stays: the collector need not look at its million objects again and again, which stops
        # every thread for a tenth of a second.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 50)
        return fingerprints

    async def run_episode(self, request: Any) -> tuple[EpisodeSummary, Trajectory]:
        """Run one episode (`EpisodeRequest`) in a free slot. Call it with `num_returns=2`.

        Raises:
            RolloutError: the request cannot be met at all.
        """
        from rollout_service.tau2.clock import Clock

        loop = asyncio.get_running_loop()
        self._next_start = max(self._next_start + _START_INTERVAL, loop.time())
        delay = self._next_start - loop.time()
        clock = self._clocks[request.trajectory_id] = Clock(delay + self._config.limits.wall_seconds)
        try:
            await asyncio.sleep(delay)
            trajectory = await loop.run_in_executor(self._threads, self._runner.run, request, clock)
        finally:
            del self._clocks[request.trajectory_id]
        return EpisodeSummary.of(trajectory), trajectory

    async def cancel(self, trajectory_ids: list[str]) -> None:
        """End these episodes as soon as they notice; they come back as aborted."""
        for trajectory_id in trajectory_ids:
            if trajectory_id in self._clocks:
                self._clocks[trajectory_id].cancelled.set()


def refuse_other_data(first: dict[str, str], data: dict[str, str]) -> None:
    """See that an actor read the same data as the first one, by the fingerprints that `setup` returned.

    Raises:
        Tau2Error: it did not.
    """
    differing = [name for name, fingerprint in first.items() if data[name] != fingerprint]
    if differing:
        raise Tau2Error(
            f"τ²-bench's data files of {', '.join(differing)} are not the same in all environment actors.",
            "Install the same data on every node; if it changed meanwhile, start the service again.",
        )
