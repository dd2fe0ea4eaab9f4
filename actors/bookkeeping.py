"""Bookkeeping: the coordinator's journal, and how a coordinator goes on after its death.

Invariant: nothing is handed out before it is known what an earlier coordinator handed out. A collection whose client
may still be there goes on at once; after a new start, when its reader comes back.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

import actors.filtering as filtering
import actors.parts as parts
import rollout_service.cluster as cluster
import rollout_service.logs as logs
from actors.restart import is_restarted
from actors.running import RunningCollection
from rollout_service.collecting.drawing import Drawing
from rollout_service.collecting.episode_state import Kept
from rollout_service.collecting.filtered import FilteredCollection
from rollout_service.collecting.planning import Planner
from rollout_service.collecting.request import CollectionRequest
from rollout_service.config import RolloutConfig
from rollout_service.config.budget import NO_LIMIT
from rollout_service.errors import RolloutError, ServiceError, last_cause
from rollout_service.journal.database import OpenCollection
from rollout_service.journal.entries import Acknowledged, Asked, Positioned, Served, Spent, Stored
from rollout_service.journal.journal import ENDING, Journal, NoJournal
from rollout_service.journal.place import PARTS
from rollout_service.phases import Phases
from rollout_service.record.part import Part, is_there

if TYPE_CHECKING:  # it imports this module
    from actors.coordinator import Coordinator

_log = logs.logger(__name__)

_OWNER_SECONDS = 10.0
"""How long a restarted coordinator waits until the process that died gives up the journal."""


class Bookkeeping:
    """The journal of one coordinator. Use it on one event loop."""

    def __init__(self, config: RolloutConfig, planner: Planner) -> None:
        self._service = config.service
        self._has_replicas = cluster.application_name(config) is not None
        self._planner = planner
        self._journal: Journal | NoJournal = NoJournal()
        self._read = asyncio.Event()
        self._error: RolloutError | None = None
        self._version = config.policy.weight_version
        self.spent: Spent | None = None
        """What the service has spent before this coordinator; known when the journal is open."""
        self.is_restarted = config.service.journal is not None and is_restarted()
        """Whether Ray started this coordinator again after its death."""

    async def open(self, version: int) -> list[RunningCollection]:
        """Open the journal, and make what it holds again.

        Args:
            version: of the weights that the trainer gave last.

        Raises:
            ServiceError: the journal cannot be used, see `Journal`; or weights are lost.
        """
        self._version = version
        try:
            if self._service.journal is None:
                return []
            collections = await asyncio.to_thread(self._open, Path(self._service.journal), version)
            self.reached(self._version)  # newer weights may have come while it was opened
            return collections
        except RolloutError as error:
            self._error = error
            raise
        finally:
            self._read.set()

    def _open(self, folder: Path, version: int) -> list[RunningCollection]:
        seconds = _OWNER_SECONDS if self.is_restarted else 0.0
        discarded = functools.partial(parts.discard_elsewhere, folder / PARTS)
        service = self._service
        self._journal = Journal(folder, service.name, form=service.journal_form, seconds=seconds, discarded=discarded)
        found = self._journal.recovered
        if self.is_restarted and self._journal.is_new:
            _log.error("There is no journal in %s on this node: the collections that were open are lost.", folder)
        if self.is_restarted and self._has_replicas and version < (found.version or 0):
            text = f"The fleet died as well, and the replicas have weights of version {version}, not {found.version}."
            raise ServiceError(text, "Start the service again and give it the weights.")
        self._planner.samplers.restore(found.samplers)
        self.spent = found.spent if self.is_restarted else None
        return [self._made_again(collection, folder, version) for collection in found.collections]

    def _made_again(self, found: OpenCollection, folder: Path, version: int) -> RunningCollection:
        asked = found.asked
        size = asked.request.group_size
        groups = len(asked.episodes) // size if asked.groups is None else asked.groups
        collection = self._planner.collection(asked.collection_id, asked.request, groups, asked.before, version)
        drawing, error = Drawing(size, asked.episodes), None
        if collection.unstarted.groups * size > len(asked.episodes):
            try:
                drawing = self._planner.drawn_on(asked.collection_id, asked.request, asked.episodes)
            except RolloutError as gone:  # its tasks are not there any more
                error = gone
                collection.cancel()
        stored = _readable(found.stored, folder)
        kept = {
            episode: Kept(
                it.attempt,
                it.summary.versions[0] if it.summary.versions else None,
                it.summary.fault is not None,
                it.summary.reward is not None,
            )
            for episode, it in stored.items()
        }
        collection.restore(kept, found.delivered, found.acknowledged)
        if isinstance(collection, FilteredCollection):
            collection.restore_dropped(found.dropped)
        running = RunningCollection(
            collection,
            drawing,
            asked.first_draw,
            asked.request.budget or NO_LIMIT,
            asked.client,
            self._journal,
            str(folder),
            asked.submission,
        )
        running.restore({episode: it.summary for episode, it in stored.items()}, found.acknowledged, found.spent)
        running.error = error
        running.is_parked = not self.is_restarted
        _log.info("Collection %s goes on: %s.", asked.collection_id, running.account)
        return running

    def give_up(self, error: RolloutError) -> None:
        """Note that this coordinator cannot go on: the error of every later call."""
        self._error = error
        self._read.set()

    async def until_read(self) -> None:
        """Wait until it is known what the journal holds.

        Raises:
            ServiceError: it cannot be used, or the service is ending.
        """
        await self._read.wait()
        if self._error is not None:
            raise self._error

    async def found(
        self, collections: Mapping[str, RunningCollection], collection_id: str, client: str | None = None
    ) -> RunningCollection:
        """The collection of this id among those that are open.

        Args:
            client: id of the client that asks for it; None: it need not be its reader.

        Raises:
            ServiceError: there is none, or another client reads it.
        """
        await self.until_read()
        if collection_id not in collections:
            raise ServiceError(
                f"There is no collection {collection_id!r}.",
                "It ended, its client was silent for service.lease_seconds, or the service was restarted.",
            )
        collections[collection_id].check_client(client)
        return collections[collection_id]

    async def begin(self, running: RunningCollection, request: CollectionRequest) -> None:
        """Note a collection that was asked for. Returns when that is safe."""
        running.journal, running.parts = self._journal, self._service.journal
        collection = running.collection
        self._journal.record(
            Asked(
                collection.collection_id,
                running.client,
                request,
                running.requests,
                tuple(sorted(collection.unstarted.before)),
                running.first_draw,
                self._planner.samplers.position(request),
                running.submission,
                filtering.wanted(collection),
            )
        )
        await self._journal.durable()

    async def acknowledge(
        self,
        collections: Mapping[str, RunningCollection],
        collection_id: str,
        numbers: Sequence[int],
        client: str | None = None,
    ) -> RunningCollection | None:
        """Note that the reader has these groups for good. Returns when that is safe.

        Args:
            collections: those that are open.
            client: as for `found`.

        Returns:
            The collection, if it is open.

        Raises:
            ServiceError: another client reads it.
        """
        await self.until_read()
        if (running := collections.get(collection_id)) is not None:
            running.check_client(client)
            running.acknowledge(numbers)
        else:
            self._journal.record(Acknowledged(collection_id, tuple(numbers)))
        await self._journal.durable()
        return running

    async def sampler(
        self, request: CollectionRequest, state: Mapping[str, Any] | None, weights: Mapping[str, float] | None
    ) -> dict[str, Any]:
        """The state of the sampler of the request's selection, after it was changed, see `Samplers.change`, which has
        the errors too. Returns when a change is safe."""
        await self.until_read()
        held = await asyncio.to_thread(self._planner.samplers.change, request, state, weights)
        if (position := held.whole_position) is not None and (state is not None or weights is not None):
            self._journal.record(Positioned(position, replaces=True))
            await self._journal.durable()
        return held.sampler.state()

    def reached(self, version: int) -> None:
        """Note that the trainer has given weights of this version."""
        self._version = version
        self._journal.record(Served(version))

    async def durable(self) -> None:
        """Wait until what was noted before is safe."""
        await self._journal.durable()

    def status(self) -> dict[str, str | None] | None:
        """Where the journal is, and why it cannot be written at present; None: there is none."""
        path = self._service.journal
        return None if path is None else {"path": path, "problem": self._journal.problem}

    async def close(self) -> None:
        """Give the journal up. The collections stay in it, for the next service; nothing more is handed out or taken,
        because it would not be noted."""
        self.give_up(ENDING)
        await asyncio.to_thread(self._journal.close)
        self._journal = NoJournal()


def begun_by(submission: str | None, collections: Iterable[RunningCollection]) -> RunningCollection | None:
    """The one of the collections that this submission began; None: there is none."""
    return next((each for each in collections if submission is not None and each.submission == submission), None)


async def go_on(coordinator: Coordinator, config: RolloutConfig, books: Bookkeeping) -> None:
    """Do again what the process that starts a service does with a new coordinator. The weight version and the variables
    with secrets come from the fleet, without which no coordinator can go on."""
    phases, service = Phases(), config.service
    fleet = await asyncio.to_thread(cluster.find, cluster.fleet_name(service.name), service.namespace)
    try:
        if fleet is None:
            raise cluster.gone("fleet")
        state = await cluster.repeated(fleet.state.remote, "fleet")
        await coordinator.policy_changed(state)
        await coordinator.start(state.episode_variables, fleet)
        phases.end("journal and environment actors")
        await coordinator.ready(phases.total, str(phases))
    except Exception as error:  # whoever calls must hear of it
        known = error if isinstance(error, RolloutError) else ServiceError(f"No restart: {last_cause(str(error))}.")
        books.give_up(known)
        raise


def _readable(stored: Mapping[int, Stored], folder: Path) -> dict[int, Stored]:
    """Those of the episodes whose part can still be read, as far as that is known here. The others are played again."""
    here, alive = None, set()
    if ray.is_initialized():
        here = str(ray.get_runtime_context().get_node_id())
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def can_be_read(part: Part | None) -> bool:
        if part is None:
            return True
        return is_there(folder / PARTS, part) or (part.node != here and part.node in alive)

    return {episode: it for episode, it in stored.items() if can_be_read(it.summary.part)}
