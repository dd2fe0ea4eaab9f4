"""Coordinator: takes collections, keeps every slot busy, hands out finished groups. One per service.

Invariant: all decisions are `rollout_service.collecting`'s; this actor only carries them out. It never
touches a trajectory's arrays: it reads the episode's summary and passes the trajectory's object reference on.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

import rollout_service.config.secrets as secrets
from actors.environment import EnvironmentActor, refuse_other_data
from actors.fleet import Fleet, UpdateReport
from deploy.replica import Orders, ReplicaState
from rollout_service.collecting.collection import Collection, Handout
from rollout_service.collecting.planning import Planner
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest, aborted_trajectory
from rollout_service.collecting.scheduler import Assignment, Scheduler
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.collecting.waits import waits_for
from rollout_service.config import RolloutConfig
from rollout_service.errors import Fault, FaultKind, RolloutError, ServiceError
from rollout_service.policy import endpoint
from rollout_service.policy.serve import SERVE_ENVIRONMENT
from rollout_service.policy.weights import GroupTerms, Rendezvous, UpdateMode, WeightUpdate
from rollout_service.redaction import redact

_MAX_ACTORS = 64
_RETRY_SECONDS = 1.0
"""Before the second attempt of an episode; doubles with each. What just broke may need a moment."""

_END_SECONDS = 5.0
"""How long a cancellation waits for what runs. An episode that waits for the policy or the user notices within a
second; one that is being scored may take longer, and asks nothing of the policy any more."""

_PLACES_SECONDS = 1.0
"""Seconds that the environment actors have to say what their episodes are in."""

_START_TRIES = 6
"""Actors that may fail to start, one after the other, before the service gives up."""

_START_SECONDS = 180.0
"""How long the first environment actor may take to be placed and set up."""


@dataclass(slots=True)
class Group:
    """A finished group, by sample index."""

    requests: list[EpisodeRequest]
    summaries: list[EpisodeSummary]
    trajectories: list[Any]
    """Object references."""


class _Running:
    """A collection with what Ray gave for it."""

    def __init__(self, collection: Collection, requests: list[EpisodeRequest]) -> None:
        self.collection = collection
        self.requests = requests
        self.results: dict[int, tuple[EpisodeSummary, Any]] = {}
        self.active = 0
        """Episodes that an actor has now."""
        self.pausing = 0
        """Episodes that wait for a moment before they are tried again."""
        self.rewards: dict[int, float] = {}
        """By episode, of those that were scored."""
        self.changed = asyncio.Event()
        self.since = time.monotonic()
        """When it was asked for."""
        self.error: RolloutError | None = None


class Coordinator:
    """The service's one point of contact."""

    def __init__(self, config: RolloutConfig, application: str | None) -> None:
        """
        Args:
            application: name of the Serve application that fronts the policy; None: an endpoint does, over HTTP.
        """
        secrets.know(config)
        self._config = config
        self._application = application
        self._fleet = Fleet(config.policy, application)
        self._scheduler = Scheduler()
        self._actors: dict[str, Any] = {}
        self._numbers = itertools.count()
        self._collections: dict[str, _Running] = {}
        self._planner = Planner(config)
        self._planning = asyncio.Lock()
        self._of_episodes: dict[str, str] = {}
        self._of_replicas: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: collections.Counter[str] = collections.Counter()
        self._last_faults: dict[str, str] = {}
        self._finished = 0
        self._scored = 0
        self._reward_sum = 0.0
        self._late = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._lost_actors = 0
        self._starting = 0
        self._failed_starts = 0
        """In a row."""
        self._start_error: RolloutError | None = None
        self._data: dict[str, str] = {}
        """Fingerprints of the domains' data, of the first actor."""
        self._settled = asyncio.Event()
        """Set once an actor is ready, or none of those that were starting came up."""

    async def receive(self, of_episodes: dict[str, str], of_replicas: dict[str, str]) -> None:
        """Take the environment variables that hold the secrets of the settings, from the process that starts the
        service; environment actors and replicas get them from here. Not the constructor: Ray stores what that takes."""
        self._of_episodes, self._of_replicas = of_episodes, of_replicas
        secrets.receive(of_episodes)

    async def of_replicas(self) -> dict[str, str]:
        """The environment variables with secrets that a replica needs."""
        return self._of_replicas

    async def check(self) -> None:
        """Everything that can be refused before anything is started: tokenizer, sampling, keys, task selection, and an
        endpoint that does not say how many tokens it takes. What it says holds for every environment actor.

        Raises:
            RolloutError: what cannot be used, and what to do.
        """
        await asyncio.get_running_loop().run_in_executor(None, self._check)
        policy = await endpoint.settled(self._config.policy)
        self._config = self._config.model_copy(update={"policy": policy})

    def _check(self) -> None:
        from rollout_service.chat.codec import ChatCodec
        from rollout_service.policy.context import check_sampling
        from rollout_service.tau2 import tasks

        config = self._config
        check_sampling(config.policy, config.policy.sampling)
        ChatCodec.load(config.policy.tokenizer_name, tool_parser=config.policy.tool_parser)
        if config.user_kind == "llm":
            from rollout_service.tau2 import users

            secrets.secret(config.user.api_key_var, "user.api_key_var")
            users.check(config.user)
        secrets.secret(config.evaluation.judge.api_key_var, "evaluation.judge.api_key_var")
        tasks.TaskSampler(config.tasks.domain, config.tasks.split, config.tasks.ids)

    async def start(self) -> None:
        """Create the environment actors; returns when the first is ready, the others join as they come.

        Raises:
            RolloutError: the first actor's own, or none could be placed.
        """
        self._fill_up()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), _START_SECONDS)
        if self._scheduler.actors:
            return
        free = ray.available_resources().get("CPU", 0)
        raise self._start_error or ServiceError(
            f"No environment actor could be started in {_START_SECONDS:.0f} s; the cluster has {free:g} CPUs free.",
            "Free a CPU, or check the node's logs.",
        )

    async def submit(self, request: CollectionRequest) -> tuple[str, int]:
        """Start a collection. Returns its id and the number of its episodes.

        Raises:
            TaskError: unknown tasks, n not divisible by the group size, tasks unfit for the agent.
        """
        async with self._planning:
            loop = asyncio.get_running_loop()
            planned = await loop.run_in_executor(None, self._planner.plan, request, self._fleet.version)
        running = _Running(*planned)
        collection = running.collection
        self._collections[collection.collection_id] = running
        collection.updated(self._fleet.version)  # an update may have come while it was planned
        self._scheduler.add(collection)
        self._fill_up()
        self._pump()
        return collection.collection_id, len(running.requests)

    async def next_group(self, collection_id: str) -> Group | None:
        """The next finished group, waiting for it; None when the collection has no more.

        Raises:
            RolloutError: the collection cannot go on: an episode's request is impossible, no actor comes up, it was
                cancelled. Every group that was finished by then was given before.
            ServiceError: unknown collection.
        """
        running = self._collections.get(collection_id)
        if running is None:
            raise ServiceError(f"There is no collection {collection_id!r}.", "It ended, or the service was restarted.")
        while True:
            handout = running.collection.take()
            self._pump()  # there is room for another group, or an episode of this one is made again
            if handout is not None:
                return self._group(running, handout)
            if running.error is not None:
                self._forget(collection_id)
                raise running.error
            if running.collection.exhausted:
                self._forget(collection_id)
                return None
            running.changed.clear()
            await running.changed.wait()

    async def cancel(self, collection_id: str) -> None:
        """Forget the collection: start nothing more of it, drop what finished, end what runs. Returns when that ended,
        so that nothing of it reaches the policy any more."""
        running = self._drop(collection_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                while running is not None and running.active:
                    running.changed.clear()
                    await running.changed.wait()

    async def cancel_submitted(self, submission: tuple[str, int]) -> None:
        """`cancel`, of what `submit` answered: for who has not waited for that."""
        await self.cancel(submission[0])

    def _drop(self, collection_id: str) -> _Running | None:
        running = self._collections.get(collection_id)
        if running is not None:
            self._end(running, ServiceError("The collection was cancelled.", "Ask for it again."))
            self._forget(collection_id)
        return running

    async def status(self) -> dict[str, Any]:
        """Counts of what the service holds and does.

        A mean is over the `scored` episodes alone, which may be few of those that are done. `last_faults` has a text
        for each kind of fault; what each collection waits for is in `running`, `places`, `to_be_tried_again` and
        `held_back`, and in words in `waits_for`.
        """
        places = await self._places()
        status: dict[str, Any] = {
            "actors": len(self._scheduler.actors),
            "lost_actors": self._lost_actors,
            "start_error": None if self._start_error is None else str(self._start_error),
            "slots": self._scheduler.slots,
            "running": self._scheduler.running,
            "finished": self._finished,
            "scored": self._scored,
            "mean_reward": self._reward_sum / self._scored if self._scored else None,
            "faults": dict(self._faults),
            "last_faults": dict(self._last_faults),
            "late": self._late + sum(running.collection.late for running in self._collections.values()),
            "weight_version": self._fleet.version,
            "paused": self._fleet.orders.pause is not None,
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
            "collections": {
                name: _progress(running, places.get(name, [])) for name, running in self._collections.items()
            },
        }
        for name, collection in status["collections"].items():
            collection["waits_for"] = waits_for(status, name)
        return status

    async def _places(self) -> dict[str, list[tuple[float, str]]]:
        """By collection, the age of each running episode and what it is in. An actor that does not say so at once is
        left out."""
        asked = [asyncio.ensure_future(_answer(actor.places.remote())) for actor in self._actors.values()]
        found: dict[str, list[tuple[float, str]]] = {}
        if not asked:
            return found
        done, late = await asyncio.wait(asked, timeout=_PLACES_SECONDS)
        for task in late:
            task.cancel()
        for task in done:
            for trajectory_id, place in task.result().items():
                found.setdefault(trajectory_id.partition("-")[0], []).append(place)
        return found

    async def stop(self) -> None:
        """End every collection and the environment actors."""
        for collection_id in list(self._collections):
            self._drop(collection_id)
        for actor in self._actors.values():
            ray.kill(actor)

    async def configuration(self) -> RolloutConfig:
        """The configuration that the service runs with."""
        return self._config

    # Weights ---------------------------------------------------------------------------------------------------------

    async def check_update(self, update: WeightUpdate) -> None:
        """See whether this update could be made now, see `Fleet.check`."""
        await self._fleet.check(update)

    async def update_weights(self, update: WeightUpdate) -> UpdateReport:
        """Bring new weights to every replica, see `Fleet.update`."""
        before = self._fleet.version
        try:
            return await self._fleet.update(update)
        finally:
            if self._fleet.version > before:
                self._scheduler.updated(self._fleet.version)
                self._pump()

    async def adopt_replicas(self) -> None:
        """Go on from the weights that the replicas serve, once they are up; see `Fleet.adopt`."""
        await self._fleet.adopt()

    async def orders(self) -> Orders:
        """What a replica that starts now should do."""
        return self._fleet.orders

    async def weight_version(self) -> int:
        """Of the weights that the trainer gave last."""
        return self._fleet.version

    async def pause(self, mode: UpdateMode) -> list[ReplicaState]:
        """Sample nothing more until `resume`."""
        return await self._fleet.pause(mode)

    async def resume(self) -> list[ReplicaState]:
        """Go on after `pause`."""
        return await self._fleet.resume()

    async def replicas(self) -> list[ReplicaState]:
        """What each policy replica says of itself; none where an endpoint of others serves the policy."""
        return [] if self._application is None else await self._fleet.states()

    async def group_terms(self) -> GroupTerms:
        """What a process group of the trainer and every replica must be like, see `Fleet.group_terms`."""
        return await self._fleet.group_terms()

    async def absent(self, group: str) -> list[str]:
        """Replicas of the process group that are gone."""
        return await self._fleet.absent(group)

    async def join_group(self, rendezvous: Rendezvous) -> list[ReplicaState]:
        """Every replica joins a process group for weight updates, see `Fleet.join`."""
        return await self._fleet.join(rendezvous)

    async def leave_group(self, group: str) -> None:
        """Every replica leaves the process group."""
        await self._fleet.leave(group)

    # Carrying out ----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        while (assignment := self._scheduler.next()) is not None:
            self._spawn(self._run(assignment, self._collections[assignment.collection_id]))

    async def _run(self, assignment: Assignment, running: _Running) -> None:
        request = running.requests[assignment.episode]
        allowed = running.collection.staleness.maximum
        oldest = 0 if allowed is None else max(0, self._fleet.version - allowed)
        waited = time.monotonic() - running.since
        request = replace(request, attempt=assignment.attempt, min_version=oldest, waited_seconds=waited)
        running.active += 1
        try:
            summary, trajectory = await self._attempt(running, request, assignment.actor)
        finally:
            running.active -= 1
            running.changed.set()
        if summary.fault is not None:
            self._faults[str(summary.fault.kind)] += 1
            self._last_faults[str(summary.fault.kind)] = f"{summary.fault.error}: {summary.fault.message}"
            if summary.fault.retryable and assignment.attempt < running.collection.max_attempts:
                running.pausing += 1
                try:
                    await asyncio.sleep(_RETRY_SECONDS * 2 ** min(assignment.attempt - 1, 5))
                finally:
                    running.pausing -= 1
        self._prompt_tokens += summary.prompt_tokens
        self._cached_tokens += summary.cached_tokens
        self._see_version(summary)
        if self._scheduler.finish(assignment, summary.fault, summary.versions):
            self._finished += 1
            running.rewards.pop(assignment.episode, None)
            if summary.reward is not None:
                self._scored += 1
                self._reward_sum += summary.reward
                running.rewards[assignment.episode] = summary.reward
            running.results[assignment.episode] = summary, trajectory
            running.changed.set()
        self._pump()

    async def _attempt(self, running: _Running, request: Any, actor: str) -> tuple[EpisodeSummary, Any]:
        if running.error is not None:  # the collection ended after this episode was assigned: nobody waits for it
            lost = aborted_trajectory(request, _service_fault(running.error, retryable=False))
            return EpisodeSummary.of(lost), ray.put(lost)
        try:
            summary_ref, trajectory = self._actors[actor].run_episode.options(num_returns=2).remote(request)
            return await summary_ref, trajectory
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RolloutError):
                self._end(running, cause)
            fault = _service_fault(cause or error, retryable=not isinstance(cause, RolloutError))
        except (RayActorError, KeyError) as error:
            self._replace(actor)
            fault = _service_fault(error, "the environment actor died")
        except Exception as error:  # whatever it was: an episode that nobody finishes would hold its slot for ever
            fault = _service_fault(error)
        lost = aborted_trajectory(request, fault)
        return EpisodeSummary.of(lost), ray.put(lost)

    def _see_version(self, summary: EpisodeSummary) -> None:
        """Where an endpoint of others serves the policy, its tokens are what tells of new weights."""
        if self._application is None and summary.versions is not None and summary.versions[1] > self._fleet.version:
            self._fleet.version = summary.versions[1]
            self._scheduler.updated(self._fleet.version)

    def _group(self, running: _Running, handout: Handout) -> Group:
        size, group = running.collection.group_size, handout.group
        for episode in handout.expired:
            running.results[episode] = self._expired(running, episode)
            running.rewards.pop(episode, None)
        results = [running.results.pop(episode) for episode in range(group * size, (group + 1) * size)]
        return Group(
            requests=running.requests[group * size : (group + 1) * size],
            summaries=[summary for summary, _ in results],
            trajectories=[trajectory for _, trajectory in results],
        )

    def _expired(self, running: _Running, episode: int) -> tuple[EpisodeSummary, Any]:
        versions = running.results[episode][0].versions
        text = (
            f"its oldest weight version was {None if versions is None else versions[0]} when the trainer was at "
            f"{self._fleet.version}, in every attempt: max_staleness is {running.collection.staleness.maximum}"
        )
        lost = aborted_trajectory(running.requests[episode], Fault(FaultKind.SERVICE, "TooOld", text, retryable=False))
        return EpisodeSummary.of(lost), ray.put(lost)

    def _end(self, running: _Running, error: RolloutError) -> None:
        """Start nothing more of the collection, end what runs of it, and let whoever waits for it know why."""
        running.error = error
        running.collection.cancel()
        ids = [request.trajectory_id for request in running.requests]
        for actor in self._actors.values():
            actor.cancel.remote(ids)
        running.changed.set()

    def _forget(self, collection_id: str) -> None:
        self._scheduler.drop(collection_id)
        forgotten = self._collections.pop(collection_id, None)
        if forgotten is not None:
            self._late += forgotten.collection.late

    # Actors ----------------------------------------------------------------------------------------------------------

    def _fill_up(self) -> None:
        """Start the actors that are missing."""
        wanted = self._config.service.actors
        if wanted is None:
            wanted = max(1, min(_MAX_ACTORS, int(ray.cluster_resources().get("CPU", 1))))
        for _ in range(wanted - len(self._actors) - self._starting):
            self._starting += 1
            self._spawn(self._add_actor())

    async def _add_actor(self) -> None:
        service = self._config.service
        name = f"{service.name}-environment-{next(self._numbers)}"
        try:
            actor = (
                ray.remote(EnvironmentActor)
                .options(
                    name=name,
                    namespace=service.namespace,
                    num_cpus=1,
                    max_concurrency=service.slots + 8,
                    runtime_env={"env_vars": SERVE_ENVIRONMENT},
                )
                .remote(self._config, self._application)
            )
            data = await actor.setup.remote(self._of_episodes)
            self._data = self._data or data
            refuse_other_data(self._data, data)
            self._actors[name] = actor
            self._scheduler.add_actor(name, service.slots)
            self._pump()
            self._failed_starts = 0
        except Exception as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            self._failed_starts += 1
            self._start_error = cause if isinstance(cause, RolloutError) else _start_failure(cause or error)
        finally:
            self._starting -= 1
        if self._scheduler.actors:
            self._settled.set()
        elif isinstance(self._start_error, RolloutError) and not isinstance(self._start_error, ServiceError):
            self._settled.set()  # the configuration cannot be used: the other actors would say the same
        if self._scheduler.actors or self._starting:
            return
        if self._failed_starts < _START_TRIES:
            self._fill_up()
            return
        self._settled.set()
        for running in list(self._collections.values()):
            self._end(running, self._start_error or _start_failure(RuntimeError("unknown")))

    def _replace(self, actor: str) -> None:
        """The actor died or cannot be reached: give it up and start another. Called for each of its episodes."""
        if self._scheduler.remove_actor(actor):
            ray.kill(self._actors.pop(actor))  # one that is only out of reach must not keep its CPU
            self._lost_actors += 1
            self._fill_up()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _answer(reference: Any) -> dict[str, tuple[float, str]]:
    """What an actor says; nothing if it cannot."""
    try:
        answer: dict[str, tuple[float, str]] = await reference
    except RayError:
        return {}
    return answer


def _progress(running: _Running, places: list[tuple[float, str]]) -> dict[str, Any]:
    collection = running.collection
    rewards = [reward for episode, reward in running.rewards.items() if collection.is_done(episode)]
    return {
        "episodes": len(running.requests),
        "done": collection.done,
        "scored": len(rewards),
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
        "waiting": collection.waiting,
        "running": running.active,
        "places": dict(collections.Counter(place for _, place in places)),
        "oldest_seconds": max((age for age, _ in places), default=None),
        "to_be_tried_again": running.pausing,
        "held_back": collection.held_back,
        "retries": collection.retries,
        "failed": collection.failed,
        "late": collection.late,
    }


def _start_failure(error: BaseException) -> ServiceError:
    problem = f"No environment actor comes up; the last one failed with: {_last_line(error)}"
    return ServiceError(problem, "See the actor's log.")


def _service_fault(error: BaseException, what: str = "", retryable: bool = True) -> Fault:
    return Fault(FaultKind.SERVICE, type(error).__name__, what or _last_line(error), retryable)


def _last_line(error: BaseException) -> str:
    return redact(str(error).strip() or repr(error)).splitlines()[-1][:500]
