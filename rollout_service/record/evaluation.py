"""Evaluation: how often a policy solves tasks, from several trials of each.

Invariant: a task counts for pass^k only with at least k trials that have a score, and each number says how many tasks
it is from. It keeps counts, and no trajectory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rollout_service.errors import RolloutError
from rollout_service.record.statistics import Summary, pass_hat_k, wilson_interval
from rollout_service.record.trajectory import Trajectory

_SOLVED = 1.0 - 1e-6
"""Least reward of a trial that τ²-bench counts as a success."""


@dataclass(frozen=True, slots=True)
class PassRate:
    """pass^k: the probability that k trials of a task all succeed, averaged over tasks."""

    k: int
    value: float
    interval: tuple[float, float]
    """95% interval over the tasks, see `wilson_interval`."""
    tasks: int
    """Tasks with at least k trials that have a score. Others are left out."""


@dataclass(slots=True)
class Evaluation:
    """What came of the trials so far."""

    trials: int
    """Trials that each task is given."""
    summary: Summary = field(default_factory=Summary)
    solved: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By task: trials that have a score, and those of them that succeeded."""

    def add(self, trajectories: Iterable[Trajectory]) -> None:
        """Count trials."""
        for trajectory in trajectories:
            self.summary.add(trajectory)
            scored, solved = self.solved.setdefault(str(trajectory.task), (0, 0))
            if trajectory.is_scored and trajectory.reward is not None:
                self.solved[str(trajectory.task)] = scored + 1, solved + (trajectory.reward >= _SOLVED)

    @property
    def pass_rates(self) -> list[PassRate]:
        """pass^1, pass^2, …, for each k for which a task has trials enough."""
        rates = []
        for k in range(1, self.trials + 1):
            counts = [each for each in self.solved.values() if each[0] >= k]
            if counts:
                value = pass_hat_k(counts, k)
                rates.append(PassRate(k, value, wilson_interval(min(value, 1.0), len(counts)), len(counts)))
        return rates

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values: those of the `Summary`, and pass^k."""
        rates = [
            {"k": rate.k, "value": rate.value, "interval": list(rate.interval), "tasks": rate.tasks}
            for rate in self.pass_rates
        ]
        return {"trials": self.trials, "tasks": len(self.solved), "pass": rates} | self.summary.to_dict()


class IncompleteEvaluation(RolloutError):
    """An evaluation ended early. `evaluation` holds what was counted by then, and `missing` is the number of episodes
    that never came."""

    def __init__(self, evaluation: Evaluation, missing: int, reason: str) -> None:
        total = evaluation.summary.episodes + missing
        super().__init__(
            f"{missing} of {total} episodes never came: {reason}", "What was counted by then is in .evaluation."
        )
        self.evaluation = evaluation
        self.missing = missing
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.evaluation, self.missing, self.reason)
