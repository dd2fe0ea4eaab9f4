"""Spending: what was spent so far, held against a budget.

Invariant: every attempt that reports what it spent is counted, also one that failed and is made again. A price that is
not known is never taken for 0. (An attempt that is lost with its process reports nothing.) Nothing here knows a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config.budget import Budget


@dataclass(slots=True)
class Spending:
    """What a collection, or a service, has spent."""

    budget: Budget
    usd: float = 0.0
    user_tokens: int = 0
    policy_tokens: int = 0
    episodes: int = 0
    """Episodes that began."""
    is_priced: bool = True
    """Whether the cost of every attempt so far is known."""

    def begin(self) -> None:
        """Count an episode that begins, once for all its attempts."""
        self.episodes += 1

    def add(self, summary: EpisodeSummary) -> None:
        """Count what an attempt spent."""
        self.user_tokens += summary.user_tokens
        self.policy_tokens += summary.policy_tokens
        if summary.cost_usd is None:
            self.is_priced = False
        else:
            self.usd += summary.cost_usd

    def limit(self, seconds: float) -> str | None:
        """The first limit of the budget that is reached, in words; None: there is none.

        Args:
            seconds: time since the collection, or the service, began.
        """
        it = self.budget
        if it.usd is not None and not self.is_priced:
            return (
                "usd: an episode's cost is not known: litellm has no price for a model, or its API reported no tokens"
            )
        if it.usd is not None and self.usd >= it.usd:
            return f"usd: ${self.usd:.2f} of ${it.usd:.2f} are spent"
        if it.wall_seconds is not None and seconds >= it.wall_seconds:
            return f"wall_seconds: {it.wall_seconds:g} s are over"
        for name in ("user_tokens", "policy_tokens", "episodes"):
            most, spent = getattr(it, name), getattr(self, name)
            if most is not None and spent >= most:
                return f"{name}: {spent:,} of {most:,} are used"
        return None
