"""Makes the sampler that the settings name.

Invariant: a collection's sampler depends on its selection and the service's settings alone.
"""

from __future__ import annotations

from rollout_service.config.tasks import SamplerKind, Tasks
from rollout_service.task_sampling.pass_rate import PassRateSampler
from rollout_service.task_sampling.pool import TaskPool
from rollout_service.task_sampling.sampler import TaskSampler
from rollout_service.task_sampling.uniform import UniformSampler
from rollout_service.task_sampling.weighted import WeightedSampler


def make(kind: SamplerKind, pool: TaskPool, settings: Tasks, *, shuffle: bool, seed: int) -> TaskSampler:
    """A sampler that has drawn nothing.

    Args:
        shuffle: for `uniform`, see `UniformSampler`.

    Raises:
        TaskError: `tasks.weights` names what the pool has not, or leaves nothing to draw.
    """
    if kind == "weighted":
        return WeightedSampler(pool, settings.weights, seed=seed, field="tasks.weights")
    if kind == "pass_rate":
        return PassRateSampler(pool, seed=seed, floor=settings.pass_rate_floor, memory=settings.pass_rate_memory)
    return UniformSampler(pool, shuffle=shuffle, seed=seed)
