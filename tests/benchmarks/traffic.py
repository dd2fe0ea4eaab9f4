"""Sessions that take turns with a policy, as episodes do, without the episodes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Policy, TurnInfo

OBSERVATION_TOKENS = 50
"""Of context that follows a turn: what a tool or the user says."""


@dataclass(frozen=True)
class Load:
    """What the sessions ask for."""

    sessions: int
    prompt_tokens: int
    turns: int
    turn_tokens: int
    vocabulary: int
    seed: int


@dataclass(frozen=True)
class Measured:
    """What they got."""

    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.seconds

    @property
    def hit_share(self) -> float:
        """Share of the prompt tokens that came from the prefix cache."""
        return self.cached_tokens / self.prompt_tokens


async def run(policy: Policy, load: Load) -> Measured:
    """All sessions at once, each turn as soon as the one before is there."""
    sampling = Sampling(max_new_tokens=load.turn_tokens, ignore_eos=True)
    totals = np.zeros(3, dtype=np.int64)

    async def session(number: int) -> None:
        generator = np.random.default_rng([load.seed, number])
        ids = generator.integers(10, load.vocabulary - 1000, load.prompt_tokens, dtype=np.int32)
        for _ in range(load.turns):
            generation = await policy.generate(ids, sampling, f"{load.seed}-{number}", TurnInfo())
            generation.check()
            totals[:] += len(generation.token_ids), len(ids), generation.cached_tokens
            said = generator.integers(10, load.vocabulary - 1000, OBSERVATION_TOKENS, dtype=np.int32)
            ids = np.concatenate([ids, generation.token_ids, said])

    start = time.perf_counter()
    await asyncio.gather(*(session(number) for number in range(load.sessions)))
    return Measured(*totals.tolist(), time.perf_counter() - start)
