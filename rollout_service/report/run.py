"""Run: the numbers of a run, from its stored trajectories.

Invariant: trajectories are read in a stream and none is kept, so a run of any length takes the memory of its tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rollout_service.errors import ConfigError, StorageError
from rollout_service.record.evaluation import Evaluation
from rollout_service.record.trajectory import Trajectory
from rollout_service.report.facts import Facts
from rollout_service.report.history import History
from rollout_service.report.numbers import Numbers
from rollout_service.report.reading import Reading

USUAL_K = 4
"""Largest k of pass^k where none is asked for: τ²-bench's published results have four trials of a task."""


class Run:
    """The numbers of a run."""

    def __init__(self, trajectories: Iterable[Trajectory], *, name: str = "", k: int | None = None) -> None:
        """
        Args:
            trajectories: may be a generator, or a `Reading`, which checks that they belong together.
            k: pass^1 to pass^k are given. None: up to the most trials that a task has, and at most 4.

        Raises:
            StorageError: as `Reading` raises it, or a trajectory's messages or checks have another form than τ²'s.
            ConfigError: no task has `k` trials with a score.
        """
        self.name = name
        self.evaluation = Evaluation(0)
        """Rewards and outcomes by domain, and pass^k."""
        self.total = Numbers()
        self.domains: dict[str, Numbers] = {}
        self.tasks: dict[str, Numbers] = {}
        """By task, as domain/split/id."""
        self.history = History()
        for trajectory in trajectories:
            self._add(trajectory)
        reading = trajectories if isinstance(trajectories, Reading) else None
        self.conditions: dict[str, Any] = {} if reading is None else reading.conditions
        """What all episodes have in common, by the names of `Provenance`. Empty: not known."""
        self.task_hashes: dict[str, str] = {} if reading is None else reading.task_hashes
        most = max((scored for scored, _ in self.evaluation.solved.values()), default=0)
        if k is not None and not 1 <= k <= most:
            raise ConfigError(
                f"pass^{k} needs {k} trials of a task that have a score; the most that a task has is {most}.",
                f"Choose k from 1 to {most}, or play more trials." if most else "Choose files with scored episodes.",
            )
        self.evaluation.trials = min(most, USUAL_K) if k is None else k

    @classmethod
    def of(
        cls, files: Sequence[str | Path], *, domain: str | None = None, name: str | None = None, k: int | None = None
    ) -> Run:
        """The numbers of stored trajectories.

        Args:
            files: `.jsonl` and `.parquet`.
            domain: only this domain's episodes; None: all.
            name: what the run is called; None: the files.
            k: as for the constructor.

        Raises:
            StorageError: a file cannot be read, is still being written, or the files do not belong together.
            ConfigError: no task has `k` trials with a score.
        """
        reading = Reading(files, domain)
        return cls(reading, name=", ".join(map(str, reading.files)) if name is None else name, k=k)

    def _add(self, trajectory: Trajectory) -> None:
        try:
            facts = Facts.of(trajectory)
        except (AttributeError, KeyError, TypeError) as error:
            raise StorageError(
                f"Trajectory {trajectory.trajectory_id!r} has messages or a reward_info that are not τ²-bench's: "
                f"{type(error).__name__} {error}.",
                "Check the file with `rollout-service verify`.",
            ) from error
        task, domain = str(trajectory.task), trajectory.task.domain
        self.evaluation.add([trajectory])
        self.total.add(trajectory, facts)
        self.domains.setdefault(domain, Numbers()).add(trajectory, facts)
        self.tasks.setdefault(task, Numbers()).add(trajectory, facts)
        self.history.add(trajectory)

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON values."""
        return {
            "name": self.name,
            "conditions": self.conditions,
            "evaluation": self.evaluation.to_dict(),
            "total": self.total.to_dict(),
            "domains": {name: numbers.to_dict() for name, numbers in self.domains.items()},
            "tasks": {task: numbers.to_dict() for task, numbers in self.tasks.items()},
            "history": self.history.to_dict(),
        }
