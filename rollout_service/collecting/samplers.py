"""Samplers: the service's samplers of tasks, one for each selection.

Invariant: collections of the same selection that have no seed draw from one sampler, so what one of them learns is
known to all, and no draw comes twice. A collection with a seed has a sampler of its own, which knows nothing at first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rollout_service.collecting.drawing import SamplerPosition, own
from rollout_service.collecting.request import CollectionRequest
from rollout_service.config.tasks import SamplerKind, Tasks
from rollout_service.errors import TaskError
from rollout_service.redaction import shown
from rollout_service.task_ref import TaskRef
from rollout_service.task_sampling.making import make
from rollout_service.task_sampling.pool import TaskPool
from rollout_service.task_sampling.sampler import TaskSampler
from rollout_service.task_sampling.weighted import WeightedSampler

Selection = tuple[str | Mapping[str, float], str, Sequence[str] | None, bool]
"""Domain, split, task ids, and whether they are shuffled."""


class HeldSampler:
    """A sampler that several threads use: a plan is made in one, and groups are drawn on the event loop."""

    def __init__(self, sampler: TaskSampler, seed: int, key: str | None) -> None:
        """
        Args:
            key: what the sampler draws from, as in `SamplerPosition`; None: its position follows from the number of its
                collection's groups.
        """
        self.sampler = sampler
        self.seed = seed
        self._key = key
        self._lock = threading.Lock()

    def draw(self, count: int = 1) -> tuple[int, list[TaskRef]]:
        """So many tasks, and the number of tasks that were drawn before them."""
        with self._lock:
            return self.sampler.drawn, [self.sampler.draw() for _ in range(count)]

    def observe(self, task: TaskRef, rewards: Sequence[float | None]) -> SamplerPosition | None:
        """See `TaskSampler.observe`. Returns the position with what was learned; None: nothing was."""
        with self._lock:
            learned = self.sampler.observe(task, rewards)
        return self._position(learned) if learned else None

    def replace(self, sampler: TaskSampler) -> None:
        """Draw from another sampler from now on."""
        with self._lock:
            self.sampler = sampler

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Draw by these weights from now on.

        Raises:
            TaskError: they have no effect or cannot be; nothing changed.
        """
        with self._lock:
            _check_weighted(self.sampler).set_weights(weights)

    @property
    def position(self) -> SamplerPosition | None:
        """How far it has drawn; None: that follows from the number of groups."""
        return self._position(None)

    @property
    def whole_position(self) -> SamplerPosition | None:
        """The position, with all that was learned."""
        return self._position(self.sampler.state())

    def _position(self, learned: dict[str, Any] | None) -> SamplerPosition | None:
        return None if self._key is None else SamplerPosition(self._key, self.seed, self.sampler.drawn, learned)


def _check_weighted(sampler: TaskSampler) -> WeightedSampler:
    """Check that weights have an effect on the sampler, and return it.

    Raises:
        TaskError: they have none.
    """
    if not isinstance(sampler, WeightedSampler):
        raise TaskError(
            f"task_weights have no effect: the selection's sampler is {sampler.facts()['sampler']}.",
            'Name the one that has weights with sampler="weighted", or set tasks.sampler.',
        )
    return sampler


class Samplers:
    """One per service. Not for two threads at a time."""

    def __init__(
        self, settings: Tasks, pool: Callable[[str | Mapping[str, float], str, Sequence[str] | None], TaskPool]
    ) -> None:
        """
        Args:
            pool: gives the tasks of domain, split and ids. May block for a second, to parse them.
        """
        self._settings = settings
        self._pool = pool
        self._held: dict[str, HeldSampler] = {}
        self._restored: dict[str, SamplerPosition] = {}

    def restore(self, positions: Iterable[SamplerPosition]) -> None:
        """Go on where earlier samplers stopped. Call it before anything is drawn."""
        self._restored = {position.selection: position for position in positions}

    def prepare(self) -> None:
        """Parse the configured tasks, so that the first collection need not. Blocks for about a second.

        Raises:
            TaskError: there are no such tasks.
        """
        chosen = self._settings
        self._pool(chosen.domain, chosen.chosen_split, chosen.ids)

    def position(self, request: CollectionRequest) -> SamplerPosition | None:
        """How far the request's selection was drawn; None: it has a seed of its own, or was not drawn yet."""
        held = None if request.seed is not None else self._held.get(self._key(request))
        return None if held is None else held.position

    def of(self, request: CollectionRequest, collection_id: str, groups: int = 0) -> HeldSampler:
        """The sampler that the request draws from. May block for a second.

        Args:
            groups: number of groups that its collection has drawn, where it goes on after a coordinator's death.

        Raises:
            TaskError: there are no such tasks; or `tasks.weights`, or the weights that were set, do not fit them.
        """
        seed = self._settings.seed if request.seed is None else request.seed
        if request.continues is not None:
            return self._own(request, collection_id, SamplerPosition("", seed, request.continues.first_draw + groups))
        if request.seed is not None:
            return self._own(request, collection_id, SamplerPosition("", seed, groups))
        key = self._key(request)
        if key not in self._held:
            before = self._restored.get(key, SamplerPosition(key, seed, 0))
            self._held[key] = HeldSampler(self._made(request, before), before.seed, key)
        return self._held[key]

    def change(
        self, request: CollectionRequest, state: Mapping[str, Any] | None, weights: Mapping[str, float] | None
    ) -> HeldSampler:
        """The sampler of the request's selection, which goes on from the state and draws by the weights. None leaves it
        as it is. May block for seconds.

        Raises:
            TaskError: as `of` raises it; it is no state of such a sampler, or the weights have no effect or cannot be.
                Nothing was changed then.
        """
        held = self.of(request, "")
        if state is not None:
            fresh = self._made(request, SamplerPosition("", held.seed, 0))
            fresh.restore(state)
            if weights is not None:
                _check_weighted(fresh).set_weights(weights)
            held.replace(fresh)
        elif weights is not None:
            held.set_weights(weights)
        return held

    def kind(self, request: CollectionRequest) -> SamplerKind:
        """How the request's tasks are drawn."""
        return self._settings.sampler if request.sampler is None else request.sampler

    def _own(self, request: CollectionRequest, collection_id: str, start: SamplerPosition) -> HeldSampler:
        """A sampler of the collection's own."""
        key = own(collection_id)
        before = self._restored.get(key, start)
        sampler = self._made(request, before)
        return HeldSampler(sampler, before.seed, None if sampler.is_fixed else key)

    def _made(self, request: CollectionRequest, before: SamplerPosition) -> TaskSampler:
        """The request's sampler at this position."""
        domain, split, ids, shuffle = self._selection(request)
        pool, kind = self._pool(domain, split, ids), self.kind(request)
        sampler = make(kind, pool, self._settings, shuffle=shuffle, seed=before.seed)
        if before.learned:
            sampler.restore({**before.learned, "sampler": kind, "drawn": before.drawn})
        else:
            sampler.skip(before.drawn)
        return sampler

    def _key(self, request: CollectionRequest) -> str:
        """What the collections have in common that share a sampler: the selection and how it is drawn."""
        selection, kind = self._selection(request), self.kind(request)
        return repr(selection if kind == "uniform" else (*selection, kind))

    def _selection(self, request: CollectionRequest) -> Selection:
        """What the request and the configuration choose."""
        defaults = self._settings
        domain = defaults.domain if request.domain is None else request.domain
        same_domain = request.domain is None or request.domain == defaults.domain
        ids = request.ids if request.ids is not None else (defaults.ids if same_domain else None)
        split = defaults.split if request.split is None else request.split
        if split.endswith(".json") and split != defaults.path:  # a file of the service's machine that nobody named
            raise TaskError(f"split is {shown(split)}.", "Name a split; tasks.path of the service may name a file.")
        if same_domain and split == defaults.split:
            split = defaults.chosen_split
        return domain, split, ids, defaults.shuffle if request.shuffle is None else request.shuffle
