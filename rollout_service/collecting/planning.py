"""Planner: makes a collection's episodes of what was asked for.

Invariant: a call with a seed always gives the same tasks and episode seeds. Without one, collections of the same
selection go on where the last one stopped, epoch by epoch, and no episode seed comes twice among them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rollout_service.collecting.breaker import Breaker
from rollout_service.collecting.collection import Collection
from rollout_service.collecting.continuation import left_to_play
from rollout_service.collecting.request import OF_SERVICE, CollectionRequest, EpisodeRequest, check_episodes
from rollout_service.collecting.staleness import Staleness
from rollout_service.config import RolloutConfig
from rollout_service.config.budget import NO_LIMIT, Budget
from rollout_service.config.tasks import SamplerKind
from rollout_service.errors import TaskError
from rollout_service.policy.context import check_sampling
from rollout_service.record.trajectory import TaskRef
from rollout_service.redaction import shown
from rollout_service.task_sampling.making import make
from rollout_service.task_sampling.pool import TaskPool
from rollout_service.task_sampling.sampler import TaskSampler


class TaskSource(Protocol):
    """Where tasks come from."""

    def pool(self, domain: str | Mapping[str, float], split: str, ids: Sequence[str] | None) -> TaskPool:
        """The selection's tasks. Raises `TaskError`: there are no such tasks."""

    def check(self, agent_kind: str, task: TaskRef) -> None:
        """Check that this kind of agent can play the task. Raises `RolloutError`: it cannot."""

    def episode_seed(self, seed: int, task: TaskRef, draw: int, sample_index: int) -> int:
        """Seed of one episode."""


class Plan(NamedTuple):
    """What is to be played for a request."""

    collection: Collection
    requests: list[EpisodeRequest]
    """One for each of the collection's episodes, those that were done before included."""
    first_draw: int
    """Number of tasks of the selection's sequence that come before the collection's first one."""
    budget: Budget


@dataclass(frozen=True, slots=True)
class SamplerPosition:
    """How far a selection was drawn by the collections that have no seed of their own."""

    selection: str
    seed: int
    drawn: int


class Planner:
    """One per service; it remembers how far each selection was drawn. Not for two threads at a time."""

    def __init__(self, config: RolloutConfig, tasks: TaskSource) -> None:
        self._config = config
        self._tasks = tasks
        self._samplers: dict[str, tuple[int, TaskSampler]] = {}
        self._restored: dict[str, SamplerPosition] = {}

    def position(self, request: CollectionRequest) -> SamplerPosition | None:
        """How far the request's selection was drawn; None: it has a seed of its own, or was not drawn yet."""
        key = self._key(request)
        if request.seed is not None or key not in self._samplers:
            return None
        seed, sampler = self._samplers[key]
        return SamplerPosition(key, seed, sampler.drawn)

    def restore(self, positions: Iterable[SamplerPosition]) -> None:
        """Go on where an earlier planner stopped, as its `position` said. Call it before the first plan."""
        self._restored = {position.selection: position for position in positions}

    def prepare(self) -> None:
        """Parse the configured tasks, so that the first collection need not. Blocks for about a second.

        Raises:
            TaskError: there are no such tasks.
        """
        chosen = self._config.tasks
        self._tasks.pool(chosen.domain, chosen.chosen_split, chosen.ids)

    def plan(self, request: CollectionRequest, version: int) -> Plan:
        """The collection and its episodes. May block for a second, to parse a task set.

        Args:
            version: of the weights that the trainer gave last.

        Raises:
            TaskError: unknown tasks, or too many of them for one collection.
            RolloutError: tasks unfit for the agent, or sampling settings unfit for the model.
        """
        if request.sampling is not None:
            check_sampling(self._config.policy, request.sampling)
        seed, sampler = self._sampler(request)
        if request.continues is not None and request.continues.collection_id is not None and request.n is not None:
            _check_can_be_drawn_again(sampler, request.continues.collection_id, self._kind(request))
        n = len(sampler.whole) * request.group_size if request.n is None else request.n
        check_episodes(n, request.group_size)
        first_draw = sampler.drawn
        drawn = [sampler.draw() for _ in range(n // request.group_size)]
        requests = self._requests(request, seed, sampler.whole if request.n is None else drawn, first_draw)
        collection_id = requests[0].collection_id
        before: list[int] = []
        if request.continues is not None:
            requests, before = left_to_play(requests, request.group_size, request.continues.done)
        collection = self.collection(collection_id, request, len(requests), before, version)
        return Plan(collection, requests, first_draw, request.budget or NO_LIMIT)

    def _requests(
        self, request: CollectionRequest, seed: int, chosen: Sequence[TaskRef], first_draw: int
    ) -> list[EpisodeRequest]:
        earlier = None if request.continues is None else request.continues.collection_id
        collection_id = earlier or uuid.uuid4().hex[:12]
        requests = []
        for group, task in enumerate(chosen):
            self._tasks.check(self._config.agent, task)
            group_id = f"{collection_id}-{group:05d}"
            requests += [
                EpisodeRequest(
                    trajectory_id=f"{group_id}-{sample:03d}",
                    collection_id=collection_id,
                    group_id=group_id,
                    sample_index=sample,
                    task=task,
                    seed=self._tasks.episode_seed(seed, task, first_draw + group, sample),
                    sampling=request.sampling,
                    max_turns=request.max_turns,
                )
                for sample in range(request.group_size)
            ]
        return requests

    def collection(
        self, collection_id: str, request: CollectionRequest, episodes: int, before: Iterable[int], version: int
    ) -> Collection:
        """The collection of a request, of which nothing has started.

        Args:
            episodes: number of episodes in its plan.
            before: the episodes that were done before it, see `Collection.skip`.
            version: of the weights that the trainer gave last.
        """
        service = self._config.service
        attempts, oldest, late = (
            getattr(service if getattr(request, name) is None else request, name) for name in OF_SERVICE
        )
        collection = Collection(
            collection_id,
            episodes // request.group_size,
            request.group_size,
            max_attempts=attempts,
            max_losses=service.max_losses,
            max_buffered_groups=service.max_buffered_groups,
            staleness=Staleness(oldest, late == "drop", request.groups_per_update),
            version=version,
            weight=1.0 if request.weight is None else request.weight,
            breaker=Breaker(request.group_size, service.give_up_seconds),
        )
        collection.skip(before)
        return collection

    def _sampler(self, request: CollectionRequest) -> tuple[int, TaskSampler]:
        """The seed, and the sequence of tasks where the collection's first one comes next."""
        seed = self._config.tasks.seed if request.seed is None else request.seed
        if request.continues is not None:
            return seed, self._drawn(request, seed, request.continues.first_draw)
        if request.seed is not None:
            return seed, self._drawn(request, seed, 0)
        key = self._key(request)
        if key not in self._samplers:
            before = self._restored.get(key, SamplerPosition(key, seed, 0))
            self._samplers[key] = (before.seed, self._drawn(request, before.seed, before.drawn))
        return self._samplers[key]

    def _drawn(self, request: CollectionRequest, seed: int, count: int) -> TaskSampler:
        """The request's sequence of tasks after so many of them."""
        domain, split, ids, shuffle = self._selection(request)
        pool = self._tasks.pool(domain, split, ids)
        sampler = make(self._kind(request), pool, self._config.tasks, shuffle=shuffle, seed=seed)
        sampler.skip(count)
        return sampler

    def _kind(self, request: CollectionRequest) -> SamplerKind:
        """How the request's tasks are drawn."""
        return self._config.tasks.sampler if request.sampler is None else request.sampler

    def _key(self, request: CollectionRequest) -> str:
        """What the collections have in common that share a sampler: the selection and how it is drawn."""
        selection, kind = self._selection(request), self._kind(request)
        return repr(selection if kind == "uniform" else (*selection, kind))

    def _selection(
        self, request: CollectionRequest
    ) -> tuple[str | Mapping[str, float], str, Sequence[str] | None, bool]:
        """What the request and the configuration choose: domain, split, task ids, and whether they are shuffled."""
        defaults = self._config.tasks
        domain = defaults.domain if request.domain is None else request.domain
        same_domain = request.domain is None or request.domain == defaults.domain
        ids = request.ids if request.ids is not None else (defaults.ids if same_domain else None)
        split = defaults.split if request.split is None else request.split
        if split.endswith(".json") and split != defaults.path:  # a file of the service's machine that nobody named
            raise TaskError(f"split is {shown(split)}.", "Name a split; tasks.path of the service may name a file.")
        if same_domain and split == defaults.split:
            split = defaults.chosen_split
        return domain, split, ids, defaults.shuffle if request.shuffle is None else request.shuffle


def _check_can_be_drawn_again(sampler: TaskSampler, collection_id: str, kind: SamplerKind) -> None:
    """Check that the tasks of an earlier collection can be drawn again.

    Raises:
        TaskError: they depended on weights that may have changed, or on what was observed then.
    """
    if not sampler.is_fixed:
        raise TaskError(
            f"Collection {collection_id} cannot be continued: nobody can say which tasks sampler {kind} drew for it.",
            "Append a collection to its file instead. What a journal holds goes on with reopen().",
        )
