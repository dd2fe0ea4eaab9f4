"""Consumption: what an episode consumed of its user simulator, its judge and its user's reviewer.

Invariant: an answer that was recorded counts, usable or not. A price that the settings give goes before the recorded
cost, so that a tape of an unpriced model can be priced later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from rollout_service.config.price import Price
from rollout_service.record.cost import total
from rollout_service.record.trajectory import Trajectory
from rollout_service.tape.recording import Recording


@dataclass(frozen=True, slots=True)
class Consumption:
    """What one episode consumed."""

    domain: str
    task_id: str
    prompt_tokens: int
    completion_tokens: int
    user_usd: float | None
    judge_usd: float | None
    review_usd: float | None = 0.0
    """US dollars; None: not known."""

    @property
    def usd(self) -> float | None:
        """US dollars of all. None: one of them is not known."""
        return total((self.user_usd, self.judge_usd, self.review_usd))

    @classmethod
    def of(cls, recording: Recording, prices: Mapping[str, Price]) -> Self:
        """What the recorded episode consumed.

        Args:
            prices: of `user`, `judge` and `review`.
        """
        usd: dict[str, float | None] = {"user": 0.0, "judge": 0.0, "review": 0.0}
        prompt = completion = 0
        for entry in recording.entries:
            prompt += entry.prompt_tokens
            completion += entry.completion_tokens
            cost = prices[entry.asked].of(entry.prompt_tokens, entry.completion_tokens)
            cost = entry.cost_usd if cost is None else cost
            before = usd[entry.asked]
            usd[entry.asked] = None if cost is None or before is None else before + cost
        take = recording.take
        return cls(take.domain, take.task_id, prompt, completion, usd["user"], usd["judge"], usd["review"])

    @classmethod
    def of_trajectory(cls, trajectory: Trajectory) -> Self:
        """What an episode consumed that was just played."""
        usages, review = trajectory.model_usages, trajectory.user_review
        return cls(
            trajectory.task.domain,
            trajectory.task.task_id,
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            trajectory.user_usage.cost_usd,
            0.0 if trajectory.judge_usage is None else trajectory.judge_usage.cost_usd,
            0.0 if review is None else review.usage.cost_usd,
        )
