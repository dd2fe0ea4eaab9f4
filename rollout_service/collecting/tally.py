"""Tally: what came of a service's episodes so far, in numbers.

Invariant: a mean is over episodes with a reward only.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.errors import Fault
from rollout_service.record.flaw_counts import FlawCounts, worst

_MOST_TASKS = 20
"""Most tasks of which the status has the user's flaws: those in which they are surest."""


class Tally:
    """Counts over all collections since the coordinator started."""

    def __init__(self) -> None:
        self._faults: Counter[str] = Counter()
        self._last_faults: dict[str, str] = {}
        self._finished = 0
        self._scored = 0
        self._reward_sum = 0.0
        self._flaws = FlawCounts()
        self._flaws_by_task: dict[str, FlawCounts] = {}
        self._reviews = FlawCounts()
        self._failed_reviews = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0

    def add_fault(self, fault: Fault) -> None:
        """Count the fault of an attempt."""
        self._faults[fault.kind] += 1
        self._last_faults[str(fault.kind)] = f"{fault.error}: {fault.message}"

    def add_attempt(self, summary: EpisodeSummary) -> None:
        """Count the tokens of an attempt, whatever becomes of it."""
        self._prompt_tokens += summary.prompt_tokens
        self._cached_tokens += summary.cached_tokens

    def add_result(self, summary: EpisodeSummary, earlier: EpisodeSummary | None = None) -> None:
        """Count an episode that is done.

        Args:
            earlier: its result that was too old when it was to be handed out, in whose place this one comes.
        """
        for each, count in ((summary, 1), (earlier, -1)):
            if each is not None:
                self._finished += count
                self._flaws.add(each.user_flaws, count)
                self._flaws_by_task.setdefault(each.task, FlawCounts()).add(each.user_flaws, count)
                self._reviews.add(each.user_review, count)
                self._failed_reviews += count * each.review_failed
                if each.reward is not None:
                    self._scored += count
                    self._reward_sum += count * each.reward

    def status(self) -> dict[str, Any]:
        """The counts, as `Coordinator.status` has them."""
        return {
            "finished": self._finished,
            "scored": self._scored,
            "mean_reward": self._reward_sum / self._scored if self._scored else None,
            "faults": {str(kind): count for kind, count in self._faults.items()},
            "last_faults": dict(self._last_faults),
            "user_flaws": self._flaws.to_dict(),
            "user_flaws_by_task": {
                task: counts.to_dict() for task, counts in worst(self._flaws_by_task, _MOST_TASKS).items()
            },
            "user_reviews": {**self._reviews.to_dict(), "failed": self._failed_reviews},
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
        }
