"""Coordinator: takes collections, keeps every slot busy, hands out finished groups. One per service.

Invariant: `rollout_service.collecting` makes all decisions; this actor carries them out. It never touches a
trajectory's arrays: it reads the episode's summary and passes the trajectory's object reference on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import actors.filtering as filtering
import rollout_service.config.secrets as secrets
import rollout_service.logs as logs
import rollout_service.services as services
from actors.actor_slots import ActorSlots
from actors.admission import Admission
from actors.alarm import Alarm
from actors.attempt import play
from actors.bookkeeping import Bookkeeping, begun_by, go_on
from actors.budgets import Budgets
from actors.clients import Clients
from actors.collection_log import log_held_back
from actors.keeping import Keeping
from actors.metering import Metering
from actors.policy_view import PolicyView
from actors.pool import ActorPool
from actors.results import result_of
from actors.running import RunningCollection
from actors.status import log_start, report
from actors.watch import Watch
from rollout_service.background import BackgroundTasks
from rollout_service.cluster import owned_applications
from rollout_service.collecting.group import Group
from rollout_service.collecting.planning import Planner
from rollout_service.collecting.request import Accepted, CollectionRequest
from rollout_service.collecting.scheduler import Assignment, Scheduler
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, ServiceError
from rollout_service.metrics.meter import Reading
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replicas import FleetState
from rollout_service.tau2.task_source import Tau2TaskSource

_log = logs.logger(__name__)

_END_SECONDS = 5.0
"""Longest wait of a cancellation for running episodes. One that is being evaluated then calls the policy no more."""


class Coordinator:
    """Runs collections for clients. An async Ray actor."""

    def __init__(self, config: RolloutConfig, application: str | None, owner: str | None = None) -> None:
        """
        Args:
            application: name of the Serve application that fronts the policy; None: an endpoint does, over HTTP.
            owner: id of the client with which the service ends; None: it runs until somebody stops it.
        """
        logs.configure(config.service.log_level)
        secrets.know(config)
        self._config, self._application = config, application
        self._fleet: FleetHandle | None = None
        self._policy = PolicyView(config.policy.weight_version, self._reached)
        self._scheduler = Scheduler()
        self._alarm = Alarm(self._pump)
        self._admission = Admission(config.policy, self._scheduler, self._pump)
        self._collections: dict[str, RunningCollection] = {}
        slots = ActorSlots(config.service.slots, self._scheduler, self._collections, self._pump, self._end)
        self._pool = ActorPool(application, slots)
        self._budgets = Budgets(config.budget, self._collections)
        self._planner = Planner(config, Tau2TaskSource(config))
        self._planning = asyncio.Lock()
        self._clients = Clients(config.service.lease_seconds, self._client_is_gone, owner)
        self._keeping = Keeping(config.service.keep_collections_seconds, self._drop)
        self._owner, self._state = owner, "starting"
        self._tasks = BackgroundTasks()
        self._books = Bookkeeping(config, self._planner)
        self._metering = Metering(config, self._pool, self._scheduler, self._collections, self._policy)
        if self._books.is_restarted:
            self._tasks.start(go_on(self, config, self._books), "going on after a restart")

    async def start(self, variables: dict[str, str], fleet: FleetHandle) -> None:
        """Start the environment actors. Returns when the first one is ready; the others join later.

        Args:
            variables: the environment variables with secrets that episodes need. The constructor does not take them,
                because Ray stores its arguments.
            fleet: the service's fleet actor.

        Raises:
            RolloutError: the error of the first actor, or no actor could be placed.
        """
        self._fleet = fleet
        secrets.receive(variables)
        if self._books.is_restarted:  # before the journal is opened, which removes what they stored for nobody
            await self._pool.adopt(self._config)
        collections = await self._books.open(self._policy.version)
        self._budgets.restore(self._books.spent)
        for running in collections:
            self._take_on(running)
        planner = asyncio.get_running_loop().run_in_executor(None, self._planner.samplers.prepare)
        await self._pool.start(self._config, variables)
        self._tasks.start(Watch(self._pool, self._config.service).run(), "looking after the environment actors")
        self._tasks.start(self._metering.run(), "measuring")
        self._tasks.start(self._admission.run(fleet), "looking at the replicas' memory")
        await planner

    async def ready(self, seconds: float, phases: str) -> None:
        """Log that the policy's replicas can sample, after so many seconds, and start the other environment actors."""
        assert self._fleet is not None
        self._state = "running"
        await log_start(
            self._config, None if self._application is None else self._fleet, len(self._pool), seconds, phases
        )
        self._pool.complete()

    async def submit(self, request: CollectionRequest, client: str, submission: str | None = None) -> Accepted:
        """Start a collection. One that continues an earlier one ends that first, if it still runs.

        Args:
            client: id of the client that it belongs to. It is cancelled if that falls silent, see `renew`.
            submission: an id of this call. Made again with the same id, it starts nothing and gets the same answer.

        Raises:
            TaskError: unknown tasks, n not divisible by the group size, tasks unfit for the agent.
            BudgetReached: the service's budget is spent.
            ServiceError: the service is ending.
        """
        await self._books.until_read()
        async with self._planning:
            if (known := begun_by(submission, self._collections.values())) is not None:
                self._clients.heard(client)
                return known.accepted
            self._budgets.check_open()
            planned = await asyncio.to_thread(self._planner.plan, request, self._policy.version)
            running = RunningCollection(*planned, client, submission=submission)
            if running.name in self._collections:
                await self.cancel(running.name)
            await self._books.begin(running, request)
            running.collection.updated(self._policy.version)  # an update may have come while it was planned
            self._take_on(running)
        running.log_beginning()
        self._pool.fill_up()
        self._pump()
        return running.accepted

    def _take_on(self, running: RunningCollection) -> None:
        self._collections[running.name] = running
        if running.is_parked:
            self._keeping.begin(running)
        else:
            self._keeping.end(running)
            self._clients.heard(running.client)
            self._scheduler.add(running.collection, time.monotonic())
            self._budgets.opened(running)

    async def reopen(self, name: str, client: str, silent: str | None = None, judges: bool | None = None) -> Accepted:
        """Have this client read a collection, as soon as no other one does. `silent` is known to be gone, and is not
        waited for. `judges`: see `check_judged`. The answer has the number of episodes that are not acknowledged.

        Raises:
            ServiceError, TaskError: unknown collection, another client reads it too long, or see `check_judged`.
        """
        running = await self._books.found(self._collections, name)
        accepted = await running.reopen(client, silent, self._clients.noticed_seconds, judges)
        self._hear(running)
        await self._books.durable()
        return accepted

    def _hear(self, running: RunningCollection) -> None:
        self._clients.heard(running.client)
        if running.is_parked:
            running.is_parked = False
            self._take_on(running)
            self._pool.fill_up()

    async def next_group(
        self, collection_id: str, acked: Sequence[int] = (), again: bool = False, client: str | None = None
    ) -> Group | None:
        """The next finished group, waiting for it; None when the collection has no more.

        Args:
            acked: numbers of groups that the reader has for good, see `acknowledge`.
            again: the reader may have missed an answer: the groups that are not acknowledged come once more.
            client: id of the client that asks, whose collection it must be.

        Raises:
            RolloutError: the collection cannot go on: an episode's request is impossible, no actor comes up, it was
                cancelled, a budget is spent, its filter kept too few. Every group finished by then was given before.
            ServiceError: unknown collection, or another client opened it again.
        """
        running = await self._books.found(self._collections, collection_id, client)
        self._hear(running)
        running.acknowledge(acked, again)
        filtering.judged(running, again)
        reader = running.new_reader()
        while True:
            running.check_reader(reader)
            group = running.next_group(self._policy.version)
            self._pump()  # there is room for another group, or an episode of this one is made again
            if group is not None:
                await running.until_noted(group)
                return group
            if running.error is not None:
                if self._forget(running):  # else it was cancelled, as its log line says
                    _log.warning("Collection %s failed %s: %s", collection_id, running.account, running.error)
                    running.end()
                raise running.error
            if running.collection.exhausted:
                _log.info("Collection %s ended %s.", collection_id, running.account)
                if running.is_over:
                    self._forget(running)
                running.check_whole()
                return None
            await running.until_changed()

    async def acknowledge(self, collection_id: str, numbers: Sequence[int], client: str | None = None) -> None:
        """Take that the reader has these groups for good: they come no more. Errors are those of `next_group`."""
        running = await self._books.acknowledge(self._collections, collection_id, numbers, client)
        if running is not None and running.is_over:
            running.end_if_short()
            self._forget(running)

    async def drop(self, collection_id: str, numbers: Sequence[int], client: str | None = None) -> None:
        """As `acknowledge`, for groups that the reader does not want to keep: others take their places."""
        filtering.drop(await self._books.found(self._collections, collection_id, client), numbers)
        self._pump()
        await self._books.durable()

    async def cancel(self, collection_id: str, client: str | None = None) -> None:
        """Forget the collection: start no further episode, drop finished ones, end running ones. Returns when the
        running ones have ended, so that none of them calls the policy any more. Another client's stays as it is."""
        await self._books.until_read()
        running = self._drop(collection_id, client=client)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                while running is not None and running.active:
                    running.changed.clear()
                    await running.changed.wait()
                await self._books.durable()

    async def cancel_submitted(self, submission: Accepted, client: str | None = None) -> None:
        """Cancel with submit()'s result, for clients that never awaited it."""
        await self.cancel(submission.collection_id, client)

    async def renew(self, client: str) -> None:
        """Renew the client's lease: `service.lease_seconds` later it loses its collections. Parked ones go on."""
        self._clients.heard(client)
        for running in [each for each in self._collections.values() if each.is_parked and each.client == client]:
            self._hear(running)
            self._pump()

    async def leave(self, client: str) -> None:
        """End the client's lease, and cancel what is left of its collections."""
        self._clients.left(client)
        self._client_is_gone(client, "its client was closed", has_left=True)

    def _client_is_gone(self, client: str, why: str, has_left: bool = False) -> None:
        """Cancel its collections. Those that a journal has wait for a reader instead, if it did not leave by itself."""
        for running in [each for each in self._collections.values() if each.client == client]:
            if has_left or running.parts is None:
                self._drop(running.name, f": {why}")
            elif not running.is_parked:
                running.park()
                self._keeping.begin(running)
                self._scheduler.park(running.name)
                self._budgets.closed(running)
                text = "Collection %s waits for its reader %s: %s. It is thrown away after %g s without one."
                _log.warning(text, running.name, running.account, why, self._config.service.keep_collections_seconds)
        if client == self._owner and self._state != "ending":
            self._tasks.start(self._end_service(why), "ending the service")

    async def _end_service(self, why: str) -> None:
        """End all that belongs to the service, this actor last."""
        _log.warning("Service %s ends: %s.", self._config.service.name, why)
        await self.stop()
        await asyncio.to_thread(services.end, self._config.service, owned_applications(self._config))

    def _drop(self, collection_id: str, why: str = "", client: str | None = None) -> RunningCollection | None:
        running = self._collections.get(collection_id)
        if running is None or not running.belongs_to(client):
            return None
        _log.info("Collection %s was cancelled %s%s.", collection_id, running.account, why)
        self._end(running, ServiceError(f"The collection was cancelled{why}.", "Ask for it again."))
        running.end()
        self._forget(running)
        return running

    async def sampler(self, request: CollectionRequest, state: Any = None, weights: Any = None) -> dict[str, Any]:
        """The state of the sampler of the request's selection, after it was changed, see `SamplerClient`."""
        async with self._planning:
            return await self._books.sampler(request, state, weights)

    async def status(self) -> dict[str, Any]:
        """Counts of what the service holds and does, as docs/operations.md describes them."""
        own = {
            "state": self._state,
            "owner": self._owner,
            "late": self._metering.late,
            "weight_version": self._policy.version,
            "paused": self._policy.is_paused,
            "journal": self._books.status(),
            "admission": self._admission.status(),
            "clients": self._clients.silences(),
        }
        return await report(own, self._config, self._pool, self._scheduler, self._metering.tally, self._collections)

    async def metrics(self) -> list[Reading]:
        """Every number of docs/metrics.md, also those of the fleet and its replicas if they answer."""
        return await self._metering.readings(self._fleet)

    async def stop(self) -> None:
        """End every collection and the environment actors, and take no more. The journal keeps the collections."""
        self._state = "ending"
        await self._books.close()
        for collection_id in list(self._collections):
            self._drop(collection_id, ": the service was stopped")
        self._pool.stop()

    async def configuration(self) -> RolloutConfig:
        """The configuration that the service runs with."""
        return self._config

    async def policy_changed(self, state: FleetState) -> None:
        """Take what the fleet says. It is also kept for a fleet that is started again."""
        self._policy.changed(state)

    async def fleet_state(self) -> FleetState | None:
        """What the fleet said last; None: it said nothing to this process."""
        return self._policy.state

    def _reached(self, version: int) -> None:
        self._books.reached(version)
        self._pool.cut(self._scheduler.updated(version))
        self._pump()

    # Carrying out ----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Start every episode that can start, and say why others cannot."""
        now = time.monotonic()
        filtering.let_go(self._collections.values(), self._pool.cancel)
        while (assignment := self._scheduler.next(now)) is not None:
            (running := self._collections[assignment.collection_id]).draw(assignment.episode)
            self._tasks.start(self._run(assignment, running), "running an episode")
            self._budgets.begun(running, assignment.attempt)
        log_held_back({name: self._admission.reason(it.held_back) for name, it in self._collections.items()})
        self._alarm.set(self._scheduler.wakes_at(now) - now)

    async def _run(self, assignment: Assignment, running: RunningCollection) -> None:
        """Run one attempt of an episode and record its result."""
        request = running.request_of(assignment, self._policy.version)
        running.active += 1
        try:
            ending = await play(self._pool, assignment.actor, request, running.error)
        finally:
            running.active -= 1
            running.changed.set()
        if not assignment.is_let_go:
            self._metering.ended(request, ending)
        self._admission.ended(ending)
        if ending.impossible is not None:
            self._end(running, ending.impossible)
        if ending.result is not None:
            self._budgets.spent(running, ending.result[0])
            if self._application is None and self._fleet is not None:
                await self._policy.observe(self._fleet, ending.result[0])
        if ending.record(self._scheduler, assignment, time.monotonic()):
            result = result_of(running, assignment.episode, ending)
            self._metering.done(request, result[0], running.waiting_result(assignment.episode))
            running.keep(assignment.episode, assignment.attempt, result)
        else:
            running.drop(ending)
        running.log.ending(running, request, assignment.episode, ending)
        if (error := running.collection.breaker.error) is not None and running.error is None:
            self._end(running, error)
        self._pump()

    def _end(self, running: RunningCollection, error: RolloutError) -> None:
        """Start nothing more of the collection, end its running episodes, and tell whoever waits for it why."""
        running.error = error
        running.collection.cancel()
        self._pool.cancel(running.unfinished())
        running.changed.set()

    def _forget(self, running: RunningCollection) -> bool:
        """Returns whether it was still open. Another one of the same id, which continues it, stays."""
        if self._collections.get(running.name) is not running:
            return False
        del self._collections[running.name]
        self._scheduler.drop(running.name)
        self._budgets.closed(running)
        self._keeping.end(running)
        running.delivery.let_go()
        self._metering.forget(running.collection)
        return True
