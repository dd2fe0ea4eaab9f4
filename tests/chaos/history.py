"""The delivery log: one JSON line for each trajectory that was delivered, and each failure that was reported.

Invariant: a line is written whole by one call, so a killed writer leaves at most one torn line, at the end. Whoever
reads or goes on with the log leaves that line out, as if its trajectory had never come.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from rollout_service.record.trajectory import Trajectory


class Identity(NamedTuple):
    """What names one episode of a collection, whatever the attempt. The same in a calm run."""

    group: int
    sample: int
    domain: str
    task: str
    seed: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One line."""

    collection: str
    group: int
    sample: int
    domain: str
    task: str
    seed: int
    attempt: int
    outcome: str
    """As in the trajectory; `aborted`: a reported failure."""
    reward: float | None
    turns: int
    tokens: int
    """Of all segments, those of the policy and of the context."""
    at: float
    """Seconds since 1970 when the client had it."""
    fault: str = ""
    """Kind and text of the fault of a reported failure."""

    @property
    def identity(self) -> Identity:
        """Which episode it is."""
        return Identity(self.group, self.sample, self.domain, self.task, self.seed)

    @property
    def reported(self) -> bool:
        """Whether it is a failure that was reported, not a trajectory."""
        return self.outcome == "aborted"

    @classmethod
    def of(cls, trajectory: Trajectory, at: float) -> Delivery:
        """The line of a trajectory that came at that time."""
        fault = trajectory.fault
        return cls(
            collection=trajectory.collection_id,
            group=int(trajectory.group_id.rpartition("-")[2]),
            sample=trajectory.sample_index,
            domain=trajectory.task.domain,
            task=trajectory.task.task_id,
            seed=trajectory.seed,
            attempt=trajectory.attempt,
            outcome=str(trajectory.outcome),
            reward=trajectory.reward,
            turns=len(trajectory.turns),
            tokens=sum(len(segment.token_ids) for segment in trajectory.segments),
            at=at,
            fault="" if fault is None else f"{fault.kind}: {fault.error}: {fault.message}"[:500],
        )


def append(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Add a line for each, in order."""
    at = time.time()
    with open(path, "ab", buffering=0) as file:
        for trajectory in trajectories:
            file.write(json.dumps(asdict(Delivery.of(trajectory, at))).encode() + b"\n")


def read(path: Path) -> list[Delivery]:
    """All whole lines; none where there is no file."""
    if not path.exists():
        return []
    return [Delivery(**json.loads(line)) for line in path.read_bytes().splitlines(keepends=True) if _whole(line)]


def count(path: Path) -> int:
    """Number of whole lines."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def repair(path: Path) -> None:
    """Take a torn last line off, so that more can be appended."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        os.truncate(path, sum(map(len, lines)) - (len(lines[-1]) if lines and not _whole(lines[-1]) else 0))


def _whole(line: bytes) -> bool:
    return line.endswith(b"\n")
