"""Planner: makes a collection's episodes of what was asked for.

Invariant: a call with a seed always gives the same tasks and episode seeds. Without one, collections of the same
selection go on where the last one stopped, epoch by epoch, and no episode seed comes twice among them.
"""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from rollout_service.config import RolloutConfig
from rollout_service.errors import TaskError
from rollout_service.request import CollectionRequest, EpisodeRequest
from rollout_service.scheduling import Collection, Staleness


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
            TaskError: unknown tasks, n not divisible by the group size.
            RolloutError: tasks unfit for the agent, or sampling settings unfit for the model.
        """
        from rollout_service.policy.context import check_sampling
        from rollout_service.tau2 import agent, tasks

        for name in ("group_size", "groups_per_update"):
            value = getattr(request, name)
            if value is not None and value < 1:
                raise TaskError(f"{name} is {value}.", "It must be at least 1.")
        if request.sampling is not None:
            check_sampling(self._config.policy, request.sampling)
        seed, sampler = self._sampler(request)
        n = len(sampler.whole) * request.group_size if request.n is None else request.n
        if n < 1 or n % request.group_size:
            raise TaskError(
                f"n={n} is not a positive multiple of group_size={request.group_size}.",
                f"Ask for {max(1, round(n / request.group_size)) * request.group_size}, or another group size.",
            )
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
        collection = Collection(
            collection_id,
            n // request.group_size,
            request.group_size,
            max_attempts=service.max_attempts,
            max_buffered_groups=service.max_buffered_groups,
            staleness=Staleness(service.max_staleness, service.late == "drop", request.groups_per_update),
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
