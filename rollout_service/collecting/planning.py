"""Planner: makes a collection's episodes of what was asked for.

Invariant: a call with a seed always gives the same tasks and episode seeds. Without one, collections of the same
selection go on where the last one stopped, epoch by epoch, and no episode seed comes twice among them.
"""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.request import OF_SERVICE, CollectionRequest, EpisodeRequest, check_episodes
from rollout_service.collecting.staleness import Staleness
from rollout_service.config import RolloutConfig


class Planner:
    """One per service; it remembers how far each selection was drawn. Not for two threads at a time."""

    def __init__(self, config: RolloutConfig) -> None:
        self._config = config
        self._samplers: dict[str, tuple[int, Any]] = {}

    def plan(self, request: CollectionRequest, version: int) -> tuple[Collection, list[EpisodeRequest]]:
        """The collection and its episodes. May block for a second, to parse a task set.

        Args:
            version: of the weights that the trainer gave last.

        Raises:
            TaskError: unknown tasks, or too many of them for one collection.
            RolloutError: tasks unfit for the agent, or sampling settings unfit for the model.
        """
        from rollout_service.policy.context import check_sampling
        from rollout_service.tau2 import agent, tasks

        if request.sampling is not None:
            check_sampling(self._config.policy, request.sampling)
        seed, sampler = self._sampler(request)
        n = len(sampler.whole) * request.group_size if request.n is None else request.n
        check_episodes(n, request.group_size)
        chosen = sampler.whole if request.n is None else itertools.islice(sampler, n // request.group_size)
        first_draw = sampler.drawn
        if request.n is None:
            sampler.drawn += len(sampler.whole)  # so that the next pass over the whole set has seeds of its own
        collection_id = uuid.uuid4().hex[:12]
        requests = []
        for group, task in enumerate(chosen):
            agent.check(self._config.agent, tasks.get(task))
            group_id = f"{collection_id}-{group:05d}"
            requests += [
                EpisodeRequest(
                    trajectory_id=f"{group_id}-{sample:03d}",
                    collection_id=collection_id,
                    group_id=group_id,
                    sample_index=sample,
                    task=task,
                    seed=tasks.episode_seed(seed, task, first_draw + group, sample),
                    sampling=request.sampling,
                )
                for sample in range(request.group_size)
            ]
        service = self._config.service
        attempts, oldest, late = (
            getattr(service if getattr(request, name) is None else request, name) for name in OF_SERVICE
        )
        collection = Collection(
            collection_id,
            n // request.group_size,
            request.group_size,
            max_attempts=attempts,
            max_buffered_groups=service.max_buffered_groups,
            staleness=Staleness(oldest, late == "drop", request.groups_per_update),
            version=version,
        )
        return collection, requests

    def _sampler(self, request: CollectionRequest) -> tuple[int, Any]:
        from rollout_service.tau2.tasks import TaskSampler

        defaults = self._config.tasks
        domain = defaults.domain if request.domain is None else request.domain
        same_domain = request.domain is None or request.domain == defaults.domain
        ids = request.ids if request.ids is not None else (defaults.ids if same_domain else None)
        split = defaults.split if request.split is None else request.split
        shuffle = defaults.shuffle if request.shuffle is None else request.shuffle
        seed = defaults.seed if request.seed is None else request.seed
        if request.seed is not None:
            return seed, TaskSampler(domain, split, ids, shuffle=shuffle, seed=seed)
        key = repr((domain, split, ids, shuffle))
        if key not in self._samplers:
            self._samplers[key] = (seed, TaskSampler(domain, split, ids, shuffle=shuffle, seed=seed))
        return self._samplers[key]
