"""What schedules showed, and the file that keeps it: one JSON line for each schedule that was carried out.

Invariant: a line is written whole by one call. A run that is ended and started again goes on with the schedules that
the file lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tests.chaos.checker import Violation
from tests.chaos.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Result:
    """What one schedule showed."""

    schedule: Schedule
    injected: int
    """Faults that came."""
    missed: int
    """Faults for which there was nothing to hit, or that came too late."""
    resumed: int
    """How many times a new client went on."""
    delivered: int
    """Trajectories that came, each counted once."""
    reported: int
    """Failures that were reported, each counted once."""
    probability: float
    """See `Verdict.probability`."""
    violations: tuple[Violation, ...]
    lengths: tuple[int, ...]
    """Tokens of each trajectory that came."""
    recovery: tuple[float, ...]
    """For each fault of a process: seconds until the first delivery after it."""
    pause: float
    """Longest time in seconds between two deliveries."""
    seconds: float
    """How long it took."""
    session: str = ""
    """Ray's session folder, with the logs."""

    def count(self, kind: str) -> int:
        """Number of violations of that kind."""
        return sum(violation.kind == kind for violation in self.violations)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(
            **values
            | {
                "schedule": Schedule.from_dict(values["schedule"]),
                "violations": tuple(Violation(**violation) for violation in values["violations"]),
                "lengths": tuple(values["lengths"]),
                "recovery": tuple(values["recovery"]),
            }
        )


class ResultsFile:
    """The results of all runs in one folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):  # a writer was killed
            path.write_bytes(b"".join(whole))
        self._results = {(result := Result.from_dict(json.loads(line))).schedule: result for line in whole}

    def append(self, result: Result) -> None:
        """Add a result."""
        with open(self._path, "ab", buffering=0) as file:
            file.write(json.dumps(result.to_dict()).encode() + b"\n")
        self._results[result.schedule] = result

    def of(self, schedules: Iterable[Schedule]) -> list[Result]:
        """The results that there are of these schedules."""
        return [self._results[schedule] for schedule in schedules if schedule in self._results]
