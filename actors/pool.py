"""ActorPool: the environment actors of a service. It starts them, replaces lost ones and passes calls on to them.

Invariant: only actors that are set up, and that read the same data as the first one, are in use. A start that failed is
tried again for as long as there is work. When no actor is left and none could be started for too long, the pool gives
up and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Mapping
from typing import Protocol

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

import rollout_service.cluster as cluster
import rollout_service.logs as logs
import rollout_service.services as services
from actors import pacer
from actors.environment import EnvironmentActor, EnvironmentHandle, EpisodeReferences, check_same_data, set_up
from rollout_service.background import BackgroundTasks
from rollout_service.cluster import SERVE_ENVIRONMENT
from rollout_service.collecting.actor_count import ActorCount
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.collecting.retry import seconds_before_retry
from rollout_service.config import RolloutConfig
from rollout_service.config.service import Service
from rollout_service.errors import RolloutError, ServiceError, Tau2Error, last_cause

_log = logs.logger(__name__)

_MAX_ACTORS = 64

_PLACES_SECONDS = 1.0
"""How long the actors have to say where their episodes are."""

_START_TRIES = 6
"""Starts that may fail in a row before the pool gives up, where no actor was ever ready or the settings are wrong."""

_START_SECONDS = 180.0
"""How long the first actor may take to be placed and set up."""

_ADOPT_SECONDS = 6.0
"""How long an actor that is taken over may take to answer; half of it for its episodes to end."""

_ALONE_SECONDS = 10.0
"""How long the other actors wait for the policy's replicas, which may share the node's cores with them."""


class PoolUser(Protocol):
    """Whoever gives the actors of a pool their episodes."""

    def actor_joined(self, name: str) -> None:
        """The actor is ready for episodes."""

    def actor_left(self, name: str) -> None:
        """The actor takes no more episodes. Called once for each that joined. It may go on with those that it has."""

    def running_on(self, name: str) -> int:
        """Number of episodes that the actor has now."""

    def demand(self) -> int:
        """Number of episodes that run, or could run if there were slots for them."""

    def has_work(self) -> bool:
        """Whether anybody waits for episodes."""

    def pool_gave_up(self, error: RolloutError) -> None:
        """No actor is left and none can be started, for this reason."""


class ActorPool:
    """The environment actors of one service. Use it on one event loop."""

    def __init__(self, application: str | None, user: PoolUser) -> None:
        """
        Args:
            application: name of the Serve application that fronts the policy; None: an endpoint does, over HTTP.
        """
        self._application = application
        self._user = user
        self._config: RolloutConfig | None = None
        self._variables: dict[str, str] = {}
        self._actors: dict[str, EnvironmentHandle] = {}
        self._numbers = itertools.count()
        self._starting = 0
        self._failed_starts = 0
        """Failed starts in a row."""
        self._failing_since: float | None = None
        """When the first of them failed."""
        self._next_try: asyncio.TimerHandle | None = None
        """Starts the missing actors after a pause; until then none is started."""
        self._retired: dict[str, str] = {}
        """Actors that go when their episodes have ended, and why."""
        self._handed_back: set[str] = set()
        """Actors whose episodes were handed back."""
        self._data: dict[str, str] = {}
        """Fingerprint of each domain's data, as the first actor read it."""
        self._count: ActorCount | None = None
        """How many actors there should be; None: as the configuration says."""
        self._alone = True
        """Whether the first actor shall be the only one for now."""
        self._settled = asyncio.Event()
        """Set when the first actor is ready, or when the pool gave up."""
        self._tasks = BackgroundTasks()
        self.lost = 0
        """Actors that were lost since the service started."""
        self.start_error: RolloutError | None = None
        """Why the last failed start failed."""

    def __len__(self) -> int:
        """Number of actors that are ready."""
        return len(self._actors) - len(self._retired)

    def actors(self) -> dict[str, EnvironmentHandle]:
        """The actors that run, by name, also those that take no more episodes."""
        return dict(self._actors)

    async def start(self, config: RolloutConfig, variables: dict[str, str]) -> None:
        """Start the first actor, and return when it is ready. `complete` starts the others.

        Args:
            variables: environment variables with the keys that episodes need, see `rollout_service.config.secrets`.

        Raises:
            RolloutError: the error of the first actor, or no actor could be placed.
        """
        self._config, self._variables = config, variables
        if (bounds := config.service.autoscaling) is not None:
            slots = config.service.slots
            self._count = ActorCount(bounds.min_actors, bounds.max_actors, slots, bounds.idle_seconds)
        self.fill_up()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), _START_SECONDS)
        if self._actors:
            return
        if self.start_error is not None:
            raise self.start_error
        free = ray.available_resources().get("CPU", 0)
        raise ServiceError(
            f"No environment actor could be started in {_START_SECONDS:.0f} s; the cluster has {free:g} CPUs free.",
            "Free a CPU, or check the node's logs.",
        )

    async def adopt(self, config: RolloutConfig) -> None:
        """Take over the actors of a coordinator that died, before `start`: new ones would take seconds to import. No
        episode of its runs any more when this returns, and nothing of one is being stored."""
        service = config.service
        found = await asyncio.to_thread(services.find_actors, service.name, service.namespace)
        names = [name for name in found if name.startswith(_prefix(service))]
        self._numbers = itertools.count(1 + max((int(name.rpartition("-")[2]) for name in names), default=-1))
        await asyncio.gather(*(self._adopt(name, config) for name in names))

    async def _adopt(self, name: str, config: RolloutConfig) -> None:
        """Take over one of them. It is ended if it cannot go on at once."""
        actor: EnvironmentHandle | None = await asyncio.to_thread(cluster.find, name, config.service.namespace)
        if actor is None:
            return
        try:
            async with asyncio.timeout(_ADOPT_SECONDS):
                data = await actor.adopt.remote(_ADOPT_SECONDS / 2)
            if data is not None:
                _log.info("Environment actor %s goes on with a new coordinator.", name)
                self._join(name, actor, data, config)
        except (RayError, TimeoutError, Tau2Error) as error:
            _log.warning("Environment actor %s does not go on: %s", name, last_cause(str(error)))
        if name not in self._actors:
            ray.kill(actor)

    def complete(self) -> None:
        """The policy's replicas can sample: start the other actors. Called by itself when that takes long."""
        self._alone = False
        self.fill_up()

    def fill_up(self) -> None:
        """Start the actors that are missing. Does nothing before `start`.

        The very first actor starts alone: episodes begin sooner when it and the first replica need not share their
        node's cores with others that start, and settings that no actor can use fail once.
        """
        if self._config is None or self._next_try is not None:
            return
        missing = self._wanted(self._config.service) - len(self) - self._starting
        for _ in range(min(missing, 1 - self._starting) if self._alone else missing):
            self._starting += 1
            self._tasks.start(self._add(self._config), "starting an environment actor")

    def _wanted(self, service: Service) -> int:
        if self._count is not None:
            return self._count.count
        return service.actors or max(1, min(_MAX_ACTORS, int(ray.cluster_resources().get("CPU", 1))))

    def resize(self, now: float, free_cpus: float) -> None:
        """Have as many actors as the episodes need, where the number is not fixed.

        Args:
            free_cpus: of the cluster.
        """
        if self._count is None or self._alone:
            return
        wanted = self._count.update(now, self._user.demand(), free_cpus - self._starting)
        ready = [name for name in self._actors if name not in self._retired]
        for name in sorted(ready, key=self._user.running_on)[: max(0, len(ready) + self._starting - wanted)]:
            self.retire(name, f"{wanted} actors are enough", logging.INFO)
        self.fill_up()

    async def _add(self, config: RolloutConfig) -> None:
        name = f"{_prefix(config.service)}{next(self._numbers)}"
        actor: EnvironmentHandle | None = None
        try:
            actor = self._create(name, config)
            data = await set_up(actor, self._variables)
            if self._config is None:  # stopped meanwhile
                return
            self._join(name, actor, data, config)
        except Exception as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            self._failed_starts += 1
            self._failing_since = self._failing_since or time.monotonic()
            self.start_error = cause if isinstance(cause, RolloutError) else _start_failure(cause or error)
            _log.warning("Environment actor could not be started: %s", self.start_error)
        finally:
            self._starting -= 1
            if name not in self._actors and actor is not None:
                ray.kill(actor)
        if name not in self._actors:
            self._start_failed(config)
            return
        if self._alone:
            asyncio.get_running_loop().call_later(_ALONE_SECONDS, self.complete)

    def _join(self, name: str, actor: EnvironmentHandle, data: dict[str, str], config: RolloutConfig) -> None:
        """Use an actor that is set up.

        Raises:
            Tau2Error: it read other data than the first one.
        """
        self._data = self._data or data
        check_same_data(self._data, data)
        self._actors[name] = actor
        self._failed_starts, self._failing_since = 0, None
        self._user.actor_joined(name)
        slots = len(self) * config.service.slots
        _log.info("Environment actor %s started: %d actors, %d slots.", name, len(self), slots)
        self._settled.set()

    def _create(self, name: str, config: RolloutConfig) -> EnvironmentHandle:
        service = config.service
        outlives = {} if service.journal is None else {"lifetime": "detached"}  # the coordinator comes back
        handle: EnvironmentHandle = (
            ray.remote(EnvironmentActor)
            .options(
                **outlives,
                name=name,
                namespace=service.namespace,
                num_cpus=1,
                max_concurrency=service.slots + 8,
                runtime_env={"env_vars": SERVE_ENVIRONMENT},
            )
            .remote(config, self._application)
        )
        return handle

    def _start_failed(self, config: RolloutConfig) -> None:
        """Try again, at once where the first actor is waited for, else after a pause; or give up."""
        assert self._failing_since is not None
        is_final = isinstance(self.start_error, RolloutError) and not isinstance(self.start_error, ServiceError)
        if is_final:
            self._settled.set()  # the configuration cannot be used: the other actors would fail in the same way
        if self._starting:
            return
        if not self._actors and (is_final or not self._data):
            if self._failed_starts < _START_TRIES:
                self.fill_up()
                return
        elif self._actors or time.monotonic() - self._failing_since < config.service.give_up_seconds:
            self._try_later()
            return
        self._settled.set()
        self._user.pool_gave_up(self.start_error or _start_failure(RuntimeError("unknown")))

    def _try_later(self) -> None:
        """Start what is missing after a pause, if there is work then. The next collection starts it otherwise."""
        if self._next_try is None:
            pause = seconds_before_retry(self._failed_starts)
            self._next_try = asyncio.get_running_loop().call_later(pause, self._try_again)

    def _try_again(self) -> None:
        self._next_try = None
        if self._user.has_work():
            self.fill_up()

    def replace(self, name: str, why: str) -> None:
        """Give up an actor that died or cannot be reached, and start another. Each of its episodes may ask for it."""
        if self._remove(name):
            self.lost += 1
            _log.warning("Environment actor %s was lost: %s. Another one is started.", name, why.rstrip("."))
            self.fill_up()

    def lose(self, name: str, error: Exception) -> bool:
        """Take that a call of this actor failed because the actor is gone. It is replaced.

        Returns:
            Whether it had to go, for a reason that has nothing to do with its episodes.
        """
        if isinstance(error, ActorDiedError) and error.preempted:
            self.hand_back(name)
        self.replace(name, last_cause(str(error)))
        return name in self._handed_back

    def retire(self, name: str, why: str, level: int = logging.WARNING) -> None:
        """Give this actor no more episodes, and end it when those that it has have ended. Another one is started."""
        if name in self._actors and name not in self._retired:
            self._retired[name] = why
            self._user.actor_left(name)
            _log.log(level, "Environment actor %s takes no more episodes: %s.", name, why)
            self.fill_up()

    def hand_back(self, name: str) -> None:
        """End this actor now. Its episodes are played elsewhere."""
        if name in self._actors:
            self._handed_back.add(name)
            _log.warning("Environment actor %s hands back %d episodes.", name, self._user.running_on(name))
            self._remove(name)
            self.fill_up()

    def end_retired(self) -> None:
        """End the retired actors whose episodes have ended."""
        for name in [name for name in self._retired if not self._user.running_on(name)]:
            _log.info("Environment actor %s was ended: %s.", name, self._retired[name])
            self._remove(name)
            self.fill_up()

    def _remove(self, name: str) -> bool:
        actor = self._actors.pop(name, None)
        if actor is None:
            return False
        ray.kill(actor)  # an actor that is merely out of reach must not keep its CPU
        if self._config is not None:
            self._tasks.start(pacer.forget(self._config, name), "giving an actor's requests to the others")
        if self._retired.pop(name, None) is None:
            self._user.actor_left(name)
        return True

    def run_episode(self, name: str, request: EpisodeRequest) -> EpisodeReferences:
        """Run an episode on this actor.

        Raises:
            KeyError: the actor was lost.
        """
        return self._actors[name].run_episode.options(num_returns=2).remote(request)

    def cancel(self, trajectory_ids: list[str]) -> None:
        """End these episodes, wherever they run."""
        for actor in self._actors.values():
            actor.cancel.remote(trajectory_ids)

    def cut(self, min_versions: Mapping[str, int]) -> None:
        """End the episodes that can no longer be in time, see `EnvironmentActor.cut`."""
        for actor in self._actors.values() if min_versions else ():
            actor.cut.remote(min_versions)

    async def places(self) -> dict[str, tuple[float, str]]:
        """Age in seconds and place of each running episode, by trajectory id. Actors that do not answer at once are
        left out."""
        asked = [asyncio.ensure_future(_places(actor)) for actor in self._actors.values()]
        if not asked:
            return {}
        done, late = await asyncio.wait(asked, timeout=_PLACES_SECONDS)
        for task in late:
            task.cancel()
        return {name: place for task in done for name, place in task.result().items()}

    def stop(self) -> None:
        """End all actors, and start no more."""
        self._config = None
        for actor in self._actors.values():
            ray.kill(actor)


async def _places(actor: EnvironmentHandle) -> dict[str, tuple[float, str]]:
    try:
        return await actor.places.remote()
    except RayError:
        return {}


def _prefix(service: Service) -> str:
    """How the names of a service's environment actors begin; a number follows."""
    return f"{service.name}-environment-"


def _start_failure(error: BaseException) -> ServiceError:
    said = last_cause(str(error)) or type(error).__name__
    return ServiceError(f"No environment actor comes up; the last one failed with: {said}", "See the actor's log.")
