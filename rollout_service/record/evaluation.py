"""Evaluation: how often a policy solves tasks, from several trials of each.

Invariant: a task counts for pass^k only with at least k trials that have a score, and each number says how many tasks
it is from. An episode without a score is in no number but the counts of such episodes. It keeps counts, and no
trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rollout_service.errors import RolloutError
from rollout_service.record.interval import Z, interval_over_tasks
from rollout_service.record.statistics import Summary, pass_hat_k, task_pass_rate
from rollout_service.record.trajectory import Trajectory

_SOLVED = 1.0 - 1e-6
"""Least reward of a trial that τ²-bench counts as a success."""

_POWER = 0.8416212335729143
"""80th percentile of the normal distribution, for 80% power."""


@dataclass(frozen=True, slots=True)
class PassRate:
    """pass^k: the probability that k trials of a task all succeed, averaged over tasks."""

    k: int
    value: float
    interval: tuple[float, float]
    """95% interval over the tasks, see `interval_over_tasks`."""
    tasks: int
    """Tasks with at least k trials that have a score. Others are left out."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return asdict(self) | {"interval": list(self.interval)}


@dataclass(frozen=True, slots=True)
class SmallestDifference:
    """The smallest difference in pass^1 to another run of the same tasks, with as many trials, that can be shown.

    It is (z_5% + z_80%) · sqrt(2 σ² / (K T)) for T tasks with K trials each, where σ² is the variance of a trial within
    its task. Where tasks have different numbers of trials, K is their harmonic mean, and σ² is from those with two or
    more. Where all trials went the same way, σ² is taken from (successes + 1) / (trials + 2), as by Laplace.

    The formula is that of the power analysis in Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640), for
    paired tasks, two runs whose σ² is the same, and policies that differ alike on every task (ω² = 0). Where they do
    not, the smallest difference is larger.
    """

    significant: float
    """Two runs that differ by less may well be equally good: a difference of this size is significant at 5%."""
    detectable: float
    """True difference that a comparison finds in 80% of the cases."""
    tasks: int
    trials: int
    """Trials that every one of the tasks has."""
    most_trials: int
    """Trials that some task has."""
    is_bound: bool
    """Whether σ² is not known, because tasks have one trial each. Then the variance over all trials is taken, which is
    larger."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return asdict(self)


@dataclass(slots=True)
class Evaluation:
    """What came of the trials so far."""

    trials: int
    """Trials that each task is given."""
    summary: Summary = field(default_factory=Summary)
    solved: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By task: trials that have a score, and those of them that succeeded."""
    conditions: dict[str, Any] = field(default_factory=dict)
    """Limits of the episodes by name, and `official`: whether they are τ²-bench's own. Empty: not known."""

    def add(self, trajectories: Iterable[Trajectory]) -> None:
        """Count trials."""
        for trajectory in trajectories:
            self.summary.add(trajectory)
            scored, solved = self.solved.setdefault(str(trajectory.task), (0, 0))
            if trajectory.is_scored and trajectory.reward is not None:
                self.solved[str(trajectory.task)] = scored + 1, solved + is_solved(trajectory.reward)

    @property
    def pass_rates(self) -> list[PassRate]:
        """pass^1, pass^2, …, for each k for which a task has trials enough."""
        return _rates(self.solved, self.trials)

    @property
    def domain_pass_rates(self) -> dict[str, list[PassRate]]:
        """The same by domain."""
        return {name: _rates(self._of(name), self.trials) for name in dict.fromkeys(map(domain_of, self.solved))}

    def _of(self, domain: str) -> dict[str, tuple[int, int]]:
        return {task: counts for task, counts in self.solved.items() if domain_of(task) == domain}

    @property
    def fewer(self) -> dict[str, int]:
        """Tasks with fewer scored trials than `trials`, and how many they have."""
        return {task: scored for task, (scored, _) in self.solved.items() if scored < self.trials}

    @property
    def smallest_difference(self) -> SmallestDifference | None:
        """What this many tasks and trials can show. None: no task has a trial with a score."""
        return _smallest_difference([counts for counts in self.solved.values() if counts[0]])

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values: those of the `Summary`, pass^k over all tasks and by domain, what is missing and
        what can be shown."""
        smallest = self.smallest_difference
        return {
            "trials": self.trials,
            "tasks": len(self.solved),
            "pass": [rate.to_dict() for rate in self.pass_rates],
            "domain_pass": {name: [rate.to_dict() for rate in rates] for name, rates in self.domain_pass_rates.items()},
            "fewer_trials": self.fewer,
            "smallest_difference": None if smallest is None else smallest.to_dict(),
            "conditions": self.conditions,
        } | self.summary.to_dict()


def is_solved(reward: float) -> bool:
    """Whether τ²-bench counts a trial with this reward as a success."""
    return reward >= _SOLVED


def domain_of(task: str) -> str:
    """The domain of a task, which is given as domain/split/id."""
    return task.partition("/")[0]


def _rates(solved: Mapping[str, tuple[int, int]], trials: int) -> list[PassRate]:
    rates: list[PassRate] = []
    for k in range(1, trials + 1):
        if counts := {task: each for task, each in solved.items() if each[0] >= k}:
            value = pass_hat_k(list(counts.values()), k)
            of_tasks = [task_pass_rate(each, k) for each in counts.values()]
            low, high = interval_over_tasks(of_tasks, [domain_of(task) for task in counts])
            rates.append(PassRate(k, value, (min(low, value), max(high, value)), len(counts)))
    return rates


def _smallest_difference(counts: Sequence[tuple[int, int]]) -> SmallestDifference | None:
    if not counts:
        return None
    trials = [scored for scored, _ in counts]
    repeated = [(n, s) for n, s in counts if n > 1]
    if repeated:
        # Without bias: s (n - s) / (n (n - 1)) is the sample variance of n trials with s successes.
        variance = math.fsum(s * (n - s) / (n * (n - 1)) for n, s in repeated) / len(repeated)
    else:
        mean = sum(s for _, s in counts) / len(counts)
        variance = mean * (1 - mean)
    passed, total = sum(s for _, s in counts), sum(trials)
    if passed in (0, total):  # no trial differs from another, which does not say that none ever will
        mean = (passed + 1) / (total + 2)
        variance = mean * (1 - mean)
    error = math.sqrt(2 * variance * math.fsum(1 / n for n in trials)) / len(counts)
    least = 1 / (max(trials) * len(counts))  # one trial more or less
    significant, detectable = (max(least, z * error) for z in (Z, Z + _POWER))
    return SmallestDifference(significant, detectable, len(counts), min(trials), max(trials), is_bound=not repeated)


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
