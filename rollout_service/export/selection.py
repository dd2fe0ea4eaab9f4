"""Selection: which trajectories of some files are exported.

Invariant: every trajectory of the files is taken, or is counted with the reason why it is left out. What cannot be
exported together is refused by `rollout_service.report.reading`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_service.errors import StorageError
from rollout_service.record.trajectory import Outcome, Trajectory
from rollout_service.report.reading import SAME, Reading

TOKENS = ("tokenizer_fingerprint", "template_fingerprint")
"""Fields of `Provenance` that must be equal where token ids of several trajectories stand side by side."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for, beside a reward: an episode without one is never exported."""

    domain: str | None = None
    """Only this domain's."""
    reward: float | None = None
    """Only those with at least this reward."""
    unique: bool = False
    """Of several trajectories of a task whose token ids are all equal, only the first."""
    per_task: int | None = None
    """Of each task only so many, the first ones."""

    @property
    def chooses(self) -> bool:
        """Whether it chooses among the scored episodes of a task, which changes pass^k."""
        return self.reward is not None or self.unique or self.per_task is not None


class Filter:
    """Decides on one trajectory of the domain after another."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._conversations: set[bytes] = set()
        self._of_task: Counter[tuple[str, str, str]] = Counter()

    def reason(self, trajectory: Trajectory) -> str:
        """Why the trajectory is left out; empty: it is taken."""
        wanted = self._selection
        if trajectory.outcome is Outcome.ABORTED:
            return "ended by a fault" if trajectory.fault is not None else "cancelled"
        if trajectory.reward is None:
            return "without a reward"
        if not trajectory.is_scored:
            return "in which the policy never spoke"
        if wanted.reward is not None and trajectory.reward < wanted.reward:
            return f"with a reward below {wanted.reward:g}"
        task = (trajectory.task.domain, trajectory.task.split, trajectory.task.task_id)
        if wanted.unique:
            conversation = _digest([*task, *(segment.token_ids.tobytes() for segment in trajectory.segments)])
            if conversation in self._conversations:
                return "with the same tokens as another of the task"
            self._conversations.add(conversation)
        if wanted.per_task is not None and self._of_task[task] >= wanted.per_task:
            return f"beyond the first {wanted.per_task} of the task"
        self._of_task[task] += 1
        return ""


class Selected:
    """The trajectories of files that a selection takes: an iterable, for one pass."""

    def __init__(self, files: Sequence[Path], selection: Selection, same: Sequence[str] = SAME) -> None:
        """
        Args:
            same: fields of `Provenance` in which all trajectories of the files must agree.

        Raises:
            StorageError: as `Reading`.
        """
        self.left_out: Counter[str] = Counter()
        """Trajectories that are not taken, by reason."""
        self.taken = 0
        self._filter = Filter(selection)
        self._reading = Reading(files, selection.domain, same)

    def __iter__(self) -> Iterator[Trajectory]:
        """
        Raises:
            StorageError: as iterating a `Reading`, or none is taken.
        """
        for trajectory, reason in self.everything():
            if not reason:
                yield trajectory

    def everything(self) -> Iterator[tuple[Trajectory, str]]:
        """Every trajectory of the domain, with the reason why it is left out, which is empty where it is taken.
        Those of other domains are only counted.

        Raises:
            StorageError: as `__iter__`.
        """
        for trajectory in self._reading:
            reason = self._filter.reason(trajectory)
            if reason:
                self.left_out[reason] += 1
            else:
                self.taken += 1
            yield trajectory, reason
        self.left_out += Counter({"of another domain": self._reading.passed_over})
        if not self.taken:
            found = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            raise StorageError(
                f"No trajectory of {', '.join(map(str, self._reading.files))} is exported: {found}.",
                "Choose other files, or leave out a filter.",
            )


def _digest(parts: Iterable[Any]) -> bytes:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
        whole.update(len(text).to_bytes(8, "little") + text)
    return whole.digest()
