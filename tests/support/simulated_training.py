"""A training run with a simulated policy: no model, no episodes, only passes and failures.

Each task has a logit of being passed. A group whose rewards differ is trained on, which raises the task's logit, and a
little those of all other tasks. Groups whose rewards are equal teach nothing, as with GRPO's advantages.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

from rollout_service.task_ref import TaskRef
from rollout_service.task_sampling.pool import TaskPool
from rollout_service.task_sampling.sampler import TaskSampler

TASKS = 74
"""As many as the train split of retail has."""

GROUP_SIZE = 8

IN_FLIGHT = 8
"""Groups that were drawn and are not observed yet, as in an asynchronous run."""


@dataclass(frozen=True)
class Difficulty:
    """How many of the tasks the policy passes nearly never and nearly always before it is trained. The logits of the
    others are spread evenly between -2.5 and 2.5, which is 8 to 92 %."""

    never: float
    always: float


AS_ON_TAU2 = Difficulty(never=0.4, always=0.25)
"""Like a policy that passes four of ten tasks: most tasks are passed in all of eight episodes, or in none."""


@dataclass(frozen=True)
class Trained:
    """What a run came to."""

    episodes: int
    informative: int
    pass_rate: float
    """Mean over all tasks, at the end."""


def pool() -> TaskPool:
    """The tasks of the simulation."""
    return TaskPool({"retail": [TaskRef("retail", "train", str(n), n) for n in range(TASKS)]}, {"retail": 1.0})


def train(
    sampler: TaskSampler, seed: int, *, informative: int, most: int = 10**9, difficulty: Difficulty = AS_ON_TAU2
) -> Trained:
    """Train until so many informative groups were collected, or so many episodes were played."""
    rng = random.Random(f"training:{seed}")
    logits = {task: _logit(rng, difficulty) for task in sampler.whole}
    general = 0.0
    in_flight: deque[TaskRef] = deque()
    episodes = found = 0
    while found < informative and episodes < most:
        while len(in_flight) < IN_FLIGHT:
            in_flight.append(sampler.draw())
        task = in_flight.popleft()
        chance = _sigmoid(logits[task] + general)
        rewards = [float(rng.random() < chance) for _ in range(GROUP_SIZE)]
        episodes += GROUP_SIZE
        sampler.observe(task, rewards)
        if len(set(rewards)) > 1:
            found += 1
            logits[task] += 0.15
            general += 0.005
    return Trained(episodes, found, sum(_sigmoid(it + general) for it in logits.values()) / TASKS)


def _logit(rng: random.Random, difficulty: Difficulty) -> float:
    kind = rng.random()
    if kind < difficulty.never:
        return rng.uniform(-8.0, -4.5)
    return rng.uniform(4.5, 8.0) if kind < difficulty.never + difficulty.always else rng.uniform(-2.5, 2.5)


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
