"""Watch: looks after the environment actors while the service runs.

Invariant: no actor is lost for want of an answer in less than `service.silence_seconds`, and one that gives none is
replaced soon after. An actor that has to go takes no new episode, and goes when its episodes have ended, or hands them
back when its node goes first.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayError

import rollout_service.logs as logs
from actors.environment import EnvironmentHandle
from rollout_service.collecting.heartbeats import Heartbeats
from rollout_service.config.service import Service

if TYPE_CHECKING:
    from actors.pool import ActorPool

_log = logs.logger(__name__)

_STEPS = 10
"""Looks in the time after which an actor counts as silent."""

_LEAVE_SECONDS = 10.0
"""How long before its node goes an actor hands back its episodes."""


class Watch:
    """Looks at the actors of one pool, over and over."""

    def __init__(self, pool: ActorPool, service: Service) -> None:
        self._pool = pool
        self._interval = service.silence_seconds / _STEPS
        self._silence_seconds = service.silence_seconds
        self._heartbeats = Heartbeats(service.silence_seconds, 2 * self._interval)
        self._asked: dict[str, asyncio.Task[None]] = {}
        """The call to each actor that was not answered yet."""
        self._nodes: dict[str, str] = {}
        """The node of each actor, by its id."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                leaving, free_cpus = await asyncio.to_thread(_look_at_cluster)
                self.look(time.monotonic(), leaving)
                self._pool.resize(time.monotonic(), free_cpus)
            except Exception as error:  # a look that fails must not be the last one
                _log.warning("Looking after the environment actors failed.", exc_info=error)

    def look(self, now: float, leaving: dict[str, float]) -> None:
        """Look once.

        Args:
            leaving: seconds until each node goes that is being drained, by its id.
        """
        actors = self._pool.actors()
        self._heartbeats.tick(now)
        for name in self._heartbeats.silent(list(actors)):
            self._pool.replace(name, f"it has given no sign of life for {self._silence_seconds:g} s")
        for name, handle in actors.items():
            if name not in self._asked:
                self._asked[name] = asyncio.ensure_future(self._ask(name, handle))
            if (seconds := leaving.get(self._nodes.get(name, ""))) is not None:
                self._pool.retire(name, "its node is being drained")
                if seconds < _LEAVE_SECONDS:
                    self._pool.hand_back(name)
        self._pool.end_retired()

    async def _ask(self, name: str, handle: EnvironmentHandle) -> None:
        try:
            pulse = await handle.beat.remote()
        except RayError:  # whoever waits for an episode of it replaces it; else its silence tells
            return
        finally:
            del self._asked[name]
        self._heartbeats.answered(name)
        self._nodes[name] = pulse.node
        if pulse.stuck:
            self._pool.retire(name, f"{pulse.stuck} of its slots hang, see its log")


def _look_at_cluster() -> tuple[dict[str, float], float]:
    """Seconds until each node goes that is being drained, by its id (infinity: nobody set a time), and the number of
    free CPUs. Blocks for a moment."""
    now = time.time()
    drained = ray._private.state.state.get_draining_nodes().items()
    leaving = {node: deadline / 1000 - now if deadline else math.inf for node, deadline in drained}
    return leaving, ray.available_resources().get("CPU", 0.0)
