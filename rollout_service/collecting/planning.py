"""Planner: makes a collection's episodes of what was asked for.

Invariant: a call with a seed always gives the same tasks and episode seeds. Without one, collections of the same
selection go on where the last one stopped, epoch by epoch, and no episode seed comes twice among them. Tasks are
drawn when their groups begin. Where it makes no difference, they are drawn when the collection is asked for.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rollout_service.collecting.breaker import Breaker
from rollout_service.collecting.collection import ENDLESS, Collection
from rollout_service.collecting.continuation import left_to_play
from rollout_service.collecting.drawing import Drawing, SamplerPosition
from rollout_service.collecting.filtered import FilteredCollection
from rollout_service.collecting.partial import fewest
from rollout_service.collecting.refill import MOST_GROUPS_FACTOR
from rollout_service.collecting.request import OF_SERVICE, CollectionRequest, EpisodeRequest, check_episodes
from rollout_service.collecting.samplers import HeldSampler, Samplers
from rollout_service.collecting.staleness import Staleness
from rollout_service.config import RolloutConfig
from rollout_service.config.budget import NO_LIMIT, Budget
from rollout_service.config.tasks import SamplerKind
from rollout_service.errors import TaskError
from rollout_service.policy.context import check_sampling
from rollout_service.record.trajectory import TaskRef
from rollout_service.task_sampling.pool import TaskPool
from rollout_service.task_sampling.sampler import TaskSampler

MOST_DRAWN_AT_ONCE = 1024
"""Largest group of a collection that draws as it goes. Its requests are made on the event loop, some 14 µs each."""


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
    drawing: Drawing
    """The collection's episodes, those that were done before included."""
    first_draw: int
    """Number of tasks of the selection's sequence that come before the collection's first one."""
    budget: Budget


class Planner:
    """One per service. Only its drawings are for another thread."""

    def __init__(self, config: RolloutConfig, tasks: TaskSource) -> None:
        self._config = config
        self._tasks = tasks
        self.samplers = Samplers(config.tasks, tasks.pool)
        """What collections draw from."""

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
        earlier = None if request.continues is None else request.continues.collection_id
        collection_id, size = earlier or uuid.uuid4().hex[:12], request.group_size
        held = self.samplers.of(request, collection_id)
        sampler = held.sampler
        if earlier is not None and request.n is not None:
            _check_can_be_drawn_again(sampler, earlier, self.samplers.kind(request))
        n = len(sampler.whole) * size if request.n is None else request.n
        if not request.endless:
            check_episodes(n, size)
        if request.endless or request.keep is not None or not (sampler.is_fixed or request.n is None):
            if size > MOST_DRAWN_AT_ONCE:
                text = f"group_size is {size}, and each group is drawn when it begins, which must not take long."
                raise TaskError(text, f"Give at most {MOST_DRAWN_AT_ONCE}.")
            for task in sampler.whole:
                self._tasks.check(self._config.agent, task)
            drawing = Drawing(size, (), _Draws(self, collection_id, request, held))
            collection = self.collection(collection_id, request, ENDLESS if request.endless else n // size, (), version)
            return Plan(collection, drawing, sampler.drawn, request.budget or NO_LIMIT)
        first_draw, drawn = held.draw(n // size)
        requests: list[EpisodeRequest] = []
        for group, task in enumerate(sampler.whole if request.n is None else drawn):
            self._tasks.check(self._config.agent, task)
            requests += self._group(collection_id, request, group, task, held.seed, first_draw + group)
        before: list[int] = []
        if request.continues is not None:
            requests, before = left_to_play(requests, size, request.continues.done)
        collection = self.collection(collection_id, request, len(requests) // size, before, version)
        return Plan(collection, Drawing(size, requests), first_draw, request.budget or NO_LIMIT)

    def _group(
        self, collection_id: str, request: CollectionRequest, group: int, task: TaskRef, seed: int, draw: int
    ) -> list[EpisodeRequest]:
        """The episodes of the group of this number, whose task was drawn as number `draw` of its sequence."""
        group_id = f"{collection_id}-{group:05d}"
        return [
            EpisodeRequest(
                trajectory_id=f"{group_id}-{sample:03d}",
                collection_id=collection_id,
                group_id=group_id,
                sample_index=sample,
                task=task,
                seed=self._tasks.episode_seed(seed, task, draw, sample),
                sampling=request.sampling,
                max_turns=request.max_turns,
            )
            for sample in range(request.group_size)
        ]

    def drawn_on(self, collection_id: str, request: CollectionRequest, drawn: Sequence[EpisodeRequest]) -> Drawing:
        """The drawing of a collection that draws as it goes, after these episodes. May block as `plan` does.

        Raises:
            TaskError: its tasks are not there any more.
        """
        held = self.samplers.of(request, collection_id, len(drawn) // request.group_size)
        return Drawing(request.group_size, drawn, _Draws(self, collection_id, request, held))

    def collection(
        self, collection_id: str, request: CollectionRequest, groups: int, before: Iterable[int], version: int
    ) -> Collection:
        """The collection of a request, of which nothing has started.

        Args:
            groups: number of groups that are handed out.
            before: the episodes that were done before it, see `Collection.skip`.
            version: of the weights that the trainer gave last.
        """
        service = self._config.service
        attempts, oldest, late, _ = (
            getattr(service if getattr(request, name) is None else request, name) for name in OF_SERVICE
        )
        settings: dict[str, Any] = {
            "max_attempts": attempts,
            "max_losses": service.max_losses,
            "max_buffered_groups": service.max_buffered_groups,
            "staleness": Staleness(oldest, late == "drop", request.groups_per_update),
            "version": version,
            "min_group_size": fewest(request.min_group_size, service.min_group_size, request.group_size),
            "weight": 1.0 if request.weight is None else request.weight,
            "breaker": Breaker(request.group_size, service.give_up_seconds),
        }
        if request.keep is not None:
            most = request.most_groups or min(groups * MOST_GROUPS_FACTOR, ENDLESS)
            return FilteredCollection(
                collection_id, most, request.group_size, wanted=groups, keeps=request.keep, **settings
            )
        collection = Collection(collection_id, groups, request.group_size, **settings)
        collection.skip(before)
        return collection


class _Draws:
    """Draws the groups of one collection as it goes."""

    def __init__(self, planner: Planner, collection_id: str, request: CollectionRequest, held: HeldSampler) -> None:
        self._planner, self._collection_id, self._request, self._held = planner, collection_id, request, held

    def draw(self, group: int) -> list[EpisodeRequest]:
        """As in `Source`."""
        draw, (task,) = self._held.draw()
        return self._planner._group(self._collection_id, self._request, group, task, self._held.seed, draw)

    def observe(self, task: TaskRef, rewards: Sequence[float | None]) -> SamplerPosition | None:
        """As in `Source`."""
        return self._held.observe(task, rewards)

    @property
    def position(self) -> SamplerPosition | None:
        """As in `Source`."""
        return self._held.position

    def facts(self) -> dict[str, Any]:
        """As in `Source`."""
        return self._held.sampler.facts()


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
