"""EnvironmentActor: slots that each run one episode at a time.

Invariant: a service's actors differ in nothing: the same settings, the same data, the same policy.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from typing import Any

import rollout_service.config.secrets as secrets
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config import RolloutConfig
from rollout_service.errors import Tau2Error
from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2.slots import Slots

_GC_THRESHOLD = 10_000
"""Allocations between looks at the youngest objects; Python's 700 is for small programs."""


class EnvironmentActor:
    """Holds τ² environments and user simulators, and runs whole episodes. An async Ray actor."""

    def __init__(self, config: RolloutConfig, application: str | None) -> None:
        """
        Args:
            application: name of the Serve application that fronts the policy; None: an endpoint does, over HTTP.
        """
        self._config = config
        self._application = application
        self._slots = Slots(config.service.slots, config.limits.wall_seconds)
        self._runner: Any = None

    async def setup(self, variables: dict[str, str]) -> dict[str, str]:
        """Import τ², read its data, load and prove the codec, find the policy. Call it once, before the first episode.

        Args:
            variables: environment variables with the keys that episodes need, see `rollout_service.config.secrets`.

        Returns:
            A fingerprint of each configured domain's data.

        Raises:
            RolloutError: the configuration cannot be used here (tokenizer, key variable, τ² package).
        """
        secrets.receive(variables)
        return await self._slots.do(functools.partial(self._make_runner, asyncio.get_running_loop()))

    def _make_runner(self, loop: asyncio.AbstractEventLoop) -> dict[str, str]:
        from rollout_service import policy
        from rollout_service.chat.codec import ChatCodec
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
        trajectory = await self._slots.run(self._runner, request)
        return EpisodeSummary.of(trajectory), trajectory

    async def places(self) -> dict[str, tuple[float, str]]:
        """What each running episode is in, and for how long it runs, see `Slots.places`."""
        return self._slots.places()

    async def cancel(self, trajectory_ids: list[str]) -> None:
        """End these episodes as soon as they notice; they come back as aborted."""
        self._slots.cancel(trajectory_ids)


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
