"""EnvironmentActor: slots that each run one episode at a time.

Invariant: all environment actors of a service have the same settings, data and policy.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import ray

import rollout_service.config.secrets as secrets
import rollout_service.garbage as garbage
import rollout_service.logs as logs
from actors import pacer
from actors.parts import PartWriter
from rollout_service.cluster import Reference, RemoteMethod
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError, Tau2Error, attach_origin
from rollout_service.record.part import Part
from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2.slots import Slots

if TYPE_CHECKING:  # they need τ², which `setup` imports in a thread
    from rollout_service.tau2.deadline import Deadline
    from rollout_service.tau2.episode import EpisodeRunner

_log = logs.logger(__name__)

_GC_THRESHOLDS = 10_000, 10, 10
"""Allocations between two collections of the youngest generation (Python's default of 700 is for small programs), and
how many of them there are to one of the next generation. An episode leaves 25 KB in cycles that only a collection of
the oldest generation frees, so that must not be rare: this makes it one in about 1,000 episodes."""


_SETUP_SECONDS = 180.0
"""How long an actor whose process runs may take to be set up."""


class Pulse(NamedTuple):
    """What an environment actor says of itself."""

    stuck: int
    """Slots whose thread hangs, see `Slots.stuck`."""
    node: str
    """Id of its node, in hex."""


class EnvironmentActor:
    """Runs whole episodes: policy calls, user simulator, environment and evaluation. An async Ray actor."""

    def __init__(self, config: RolloutConfig, application: str | None) -> None:
        """
        Args:
            application: name of the Serve application that fronts the policy; None: an endpoint does, over HTTP.
        """
        logs.configure(config.service.log_level)
        self._config = config
        self._application = application
        self._slots = Slots(config.service.slots, config.limits.wall_seconds, config.limits.stuck_seconds)
        self._parts = PartWriter(config.service.journal)
        self._runner: EpisodeRunner | None = None
        self._data: dict[str, str] | None = None
        """What `setup` returned."""
        self._active = 0
        """Episodes that run or are being stored."""
        self._idle = asyncio.Event()
        """Set while there are none."""
        self._idle.set()

    async def setup(self, variables: dict[str, str]) -> dict[str, str]:
        """Import τ², read its data, load and prove the codec, connect to the policy. Call it once, before any episode.

        Args:
            variables: environment variables with the keys that episodes need, see `rollout_service.config.secrets`.

        Returns:
            A fingerprint of each configured domain's data.

        Raises:
            RolloutError: the configuration cannot be used on this node: tokenizer, key variable or τ² package.
        """
        begun = time.monotonic()
        secrets.receive(variables)
        fingerprints = await self._slots.do(functools.partial(self._make_runner, asyncio.get_running_loop()))
        domains, seconds = ", ".join(fingerprints), time.monotonic() - begun
        _log.info("Ready for episodes of %s after %.1f s; slots: %d.", domains, seconds, self._config.service.slots)
        self._data = fingerprints
        return fingerprints

    async def adopt(self, seconds: float) -> dict[str, str] | None:
        """Work for another coordinator from now on: the one before it died, and nobody waits for its episodes.

        Args:
            seconds: how long they may take to end, with what they store.

        Returns:
            What `setup` returned; None: it was not set up, or an episode did not end.
        """
        self._slots.cancel(list(self._slots.places()))
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return None
        self._parts.begin_another_file()
        return self._data

    def _make_runner(self, loop: asyncio.AbstractEventLoop) -> dict[str, str]:
        with garbage.left_alone():
            import rollout_service.policy as policy
            from rollout_service.chat.codec import ChatCodec
            from rollout_service.tau2.episode import EpisodeRunner

            settings = self._config.policy
            codec = ChatCodec.of(settings)
            gates = pacer.gates(self._config, ray.get_runtime_context().get_actor_name() or "environment")
            self._runner = EpisodeRunner(self._config, codec, policy.make(settings, self._application), loop, gates)
            fingerprints: dict[str, str] = self._runner.prepare()
        garbage.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        return fingerprints

    async def run_episode(self, request: EpisodeRequest) -> tuple[EpisodeSummary, Trajectory]:
        """Run one episode in a free slot. Call it with `num_returns=2`, for a reference of each result.

        Raises:
            RolloutError: the request is impossible; another attempt would fail in the same way.
        """
        assert self._runner is not None, "setup comes first"
        self._active += 1
        self._idle.clear()
        try:
            played = _Played(self._runner, self._parts)
            trajectory = await self._slots.run(played, request)
            part = played.part or await self._parts.write(trajectory)
            summary = replace(EpisodeSummary.of(trajectory), part=part)
            return (replace(summary, cost_usd=0.0) if self._config.tape.asks_nobody else summary), trajectory
        except Exception as error:
            attach_origin(error)
            raise
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def beat(self) -> Pulse:
        """A sign of life."""
        return Pulse(self._slots.stuck, ray.get_runtime_context().get_node_id())

    async def places(self) -> dict[str, tuple[float, str]]:
        """Age in seconds and place of each running episode, by trajectory id; see `Slots.places`."""
        return self._slots.places()

    async def cancel(self, trajectory_ids: list[str]) -> None:
        """Tell these episodes to end. Each one ends as soon as it notices, as an aborted trajectory."""
        self._slots.cancel(trajectory_ids)

    async def cut(self, min_versions: Mapping[str, int]) -> None:
        """End the episodes that can no longer be in time, see `Slots.cut`."""
        self._slots.cut(min_versions)


class _Played:
    """Plays one episode and stores its trajectory in the same thread, which spares the way through another one."""

    def __init__(self, runner: EpisodeRunner, parts: PartWriter) -> None:
        self._runner, self._parts = runner, parts
        self.part: Part | None = None
        """Where the trajectory lies; None: it is not stored."""

    def run(self, request: EpisodeRequest, deadline: Deadline) -> Trajectory:
        """See `EpisodeRunner.run`."""
        trajectory = self._runner.run(request, deadline)
        with deadline.within("the journal"):
            self.part = self._parts.write_here(trajectory)
        return trajectory


def check_same_data(first: dict[str, str], data: dict[str, str]) -> None:
    """Compare the fingerprints that `setup` returned with those of the first actor.

    Raises:
        Tau2Error: they differ.
    """
    differing = [name for name, fingerprint in first.items() if data[name] != fingerprint]
    if differing:
        raise Tau2Error(
            f"τ²-bench's data files of {', '.join(differing)} are not the same in all environment actors.",
            "Install the same data on every node; if it changed meanwhile, start the service again.",
        )


EpisodeReferences = tuple[Reference[EpisodeSummary], Reference[Trajectory]]


class _RunEpisode(Protocol):
    def options(self, *, num_returns: int) -> Self: ...
    def remote(self, request: EpisodeRequest) -> EpisodeReferences: ...


class EnvironmentHandle(Protocol):
    """Handle of an `EnvironmentActor`. Each method is described there."""

    setup: RemoteMethod[[dict[str, str]], dict[str, str]]
    adopt: RemoteMethod[[float], dict[str, str] | None]
    run_episode: _RunEpisode
    beat: RemoteMethod[[], Pulse]
    places: RemoteMethod[[], dict[str, tuple[float, str]]]
    cancel: RemoteMethod[[list[str]], None]
    cut: RemoteMethod[[Mapping[str, int]], None]


async def set_up(actor: EnvironmentHandle, variables: dict[str, str]) -> dict[str, str]:
    """Set the actor up, see `EnvironmentActor.setup`. One that waits for a free CPU may do so for long.

    Raises:
        ServiceError: it hangs.
    """
    await actor.beat.remote()
    try:
        async with asyncio.timeout(_SETUP_SECONDS):
            return await actor.setup.remote(variables)
    except TimeoutError:
        raise ServiceError(
            f"An environment actor was not ready {_SETUP_SECONDS:g} s after its process had begun.",
            "See its log; its node may be short of memory or CPU time.",
        ) from None
