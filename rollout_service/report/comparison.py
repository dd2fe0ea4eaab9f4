"""Comparison: two runs of the same tasks.

Invariant: differences are paired. Each is taken within a task, and a task counts only where both runs have trials
enough, so that a run with easier tasks is not taken for a better one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rollout_service.errors import StorageError
from rollout_service.record.bootstrap import FEWEST, intervals
from rollout_service.record.evaluation import domain_of
from rollout_service.record.interval import wilson_interval
from rollout_service.record.statistics import task_pass_rate
from rollout_service.report.reading import said
from rollout_service.report.run import Run

MUST_AGREE = ("evaluation", "tau2_distribution", "tau2_version")
"""Conditions without which a difference says nothing: how episodes are scored."""

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of a mean over tasks: the run's minus the baseline's."""

    what: str
    """`reward`, or `pass^k`."""
    value: float
    run: float
    baseline: float
    interval: tuple[float, float]
    """95% interval over the tasks: bootstrap, or with fewer than ten tasks or where all agree a wider one, as of
    `PassRate`."""
    tasks: int

    @property
    def is_significant(self) -> bool:
        """Whether 0 is outside the interval."""
        return not self.interval[0] <= 0.0 <= self.interval[1]


@dataclass(frozen=True, slots=True)
class Change:
    """A task that changed sides: one run solves it in more than half of its trials, the other does not."""

    task: str
    baseline: tuple[int, int]
    """Trials with a score, and those that succeeded."""
    run: tuple[int, int]


class Comparison:
    """A run against a baseline."""

    def __init__(self, run: Run, baseline: Run) -> None:
        """
        Raises:
            StorageError: they have no task in common, or were scored differently.
        """
        self.run, self.baseline = run, baseline
        _check_same_scoring(run, baseline)
        counts = {
            task: (run.evaluation.solved[task], baseline.evaluation.solved[task])
            for task in run.evaluation.solved
            if task in baseline.evaluation.solved
        }
        self._counts = {task: pair for task, pair in counts.items() if pair[0][0] and pair[1][0]}
        """Of each task of both: trials with a score and successes, of the run and of the baseline."""
        if not self._counts:
            raise StorageError(
                f"{run.name} and {baseline.name} have no task in common that both have scored.",
                "Compare runs of the same domain and split.",
            )

    @property
    def other_conditions(self) -> dict[str, tuple[Any, Any]]:
        """Conditions in which the runs differ, by the names of `Provenance`: the run's and the baseline's."""
        return _differing(self.run, self.baseline)

    @property
    def left_out(self) -> int:
        """Tasks that only one of the runs has scored."""
        return len(self.run.evaluation.solved.keys() | self.baseline.evaluation.solved.keys()) - len(self._counts)

    @property
    def differences(self) -> list[Difference]:
        """Of the reward, then of pass^1, pass^2, …, as far as both runs have trials enough."""
        rewards = [
            (self.run.tasks[task].mean_reward or 0.0, self.baseline.tasks[task].mean_reward or 0.0)
            for task in self._counts
        ]
        found = [_difference("reward", list(self._counts), rewards)]
        for k in range(1, min(self.run.evaluation.trials, self.baseline.evaluation.trials) + 1):
            enough = {task: pair for task, pair in self._counts.items() if min(pair[0][0], pair[1][0]) >= k}
            if enough:
                rates = [(task_pass_rate(ours, k), task_pass_rate(theirs, k)) for ours, theirs in enough.values()]
                found.append(_difference(f"pass^{k}", list(enough), rates))
        return found

    @property
    def gained(self) -> list[Change]:
        """Tasks that the run solves more often than not, and the baseline does not."""
        return self._changes(to=True)

    @property
    def lost(self) -> list[Change]:
        """The reverse."""
        return self._changes(to=False)

    def _changes(self, to: bool) -> list[Change]:
        pairs = self._counts.items()
        return [
            Change(task, theirs, ours)
            for task, (ours, theirs) in pairs
            if _is_solved(ours) is to and _is_solved(theirs) is not to
        ]

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON values."""
        return {
            "run": self.run.name,
            "baseline": self.baseline.name,
            "tasks": len(self._counts),
            "tasks_left_out": self.left_out,
            "other_conditions": {name: list(pair) for name, pair in self.other_conditions.items()},
            "differences": [
                asdict(each) | {"interval": list(each.interval), "significant": each.is_significant}
                for each in self.differences
            ],
            "gained": [asdict(change) for change in self.gained],
            "lost": [asdict(change) for change in self.lost],
        }


def _is_solved(counts: tuple[int, int]) -> bool:
    return 2 * counts[1] > counts[0]


def _difference(what: str, tasks: list[str], pairs: list[tuple[float, float]]) -> Difference:
    ours, theirs = np.array(pairs).T
    each = ours - theirs
    value = float(each.mean())
    if len(tasks) < FEWEST or np.ptp(each) == 0:
        middle = min(max((value + 1) / 2, 0.0), 1.0)  # differences lie in [-1, 1]
        low, high = (2 * end - 1 for end in wilson_interval(middle, len(tasks)))
    else:
        low, high = intervals(each[:, None], [domain_of(task) for task in tasks])[0].tolist()
    return Difference(what, value, float(ours.mean()), float(theirs.mean()), (low, high), len(tasks))


def _differing(run: Run, baseline: Run) -> dict[str, tuple[Any, Any]]:
    ours, theirs = run.conditions, baseline.conditions
    return {name: (ours[name], theirs[name]) for name in ours if name in theirs and ours[name] != theirs[name]}


def _check_same_scoring(run: Run, baseline: Run) -> None:
    for name, (ours, theirs) in _differing(run, baseline).items():
        if name in MUST_AGREE:
            raise StorageError(
                f"{run.name} has provenance.{name} {said(name, ours)}, and {baseline.name} has {said(name, theirs)}: "
                "they are scored differently.",
                "Score one of them again (rollout-service rescore), or compare runs of one release of τ²-bench.",
            )
    both = run.task_hashes.keys() & baseline.task_hashes.keys()
    changed = sorted(task for task in both if run.task_hashes[task] != baseline.task_hashes[task])
    if changed:
        more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        raise StorageError(
            f"{run.name} and {baseline.name} were played with different versions of the tasks "
            f"{', '.join(changed[:_MOST_NAMED])}{more}.",
            "Score one of them again with the tasks of the other: rollout-service rescore.",
        )
