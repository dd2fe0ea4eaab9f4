"""Reading: the trajectories of a run, from any number of files.

Invariant: a file is read once, in a stream, and every trajectory is given once. An error says why nothing can be made
of them: a file is damaged or still being written, holds the same trajectories as another, or has episodes of different
conditions, whose numbers mean nothing together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rollout_service.errors import StorageError
from rollout_service.record.storage import iterate
from rollout_service.record.trajectory import Outcome, Trajectory
from rollout_service.record.writing_lock import check_not_written
from rollout_service.redaction import shown

SAME = (
    "model",
    "tokenizer_fingerprint",
    "template_fingerprint",
    "sampling",
    "agent",
    "user",
    "user_arguments",
    "evaluation",
    "retrieval",
    "limits",
    "tau2_distribution",
    "tau2_version",
)
"""Fields of `Provenance` that all episodes of a run have in common. One that an older release did not record is passed
over."""


class Reading:
    """The trajectories of some files: an iterable, for one pass."""

    def __init__(self, files: Sequence[str | Path], domain: str | None = None, same: Sequence[str] = SAME) -> None:
        """
        Args:
            domain: only this domain's; None: all.
            same: fields of `Provenance` that all of them must have in common.

        Raises:
            StorageError: there is no file, one does not exist, its ending is unknown, or a process writes to it.
        """
        if not files:
            raise StorageError("There is no file to read.", "Name at least one file of trajectories.")
        self.files = [Path(file) for file in files]
        self.conditions: dict[str, Any] = {}
        """What the episodes that were given have in common, by the names in `same`."""
        self.task_hashes: dict[str, str] = {}
        """Hash of each task, as far as it is recorded."""
        self.passed_over = 0
        """Trajectories of other domains."""
        self._domain = domain
        self._same = same
        self._seen: set[bytes] = set()
        for path in self.files:
            check_not_written(path)
        self._stored = [iterate(path) for path in self.files]

    def __iter__(self) -> Iterator[Trajectory]:
        """
        Raises:
            StorageError: a file is damaged or unfinished, a trajectory comes twice, two of them differ in what must be
                the same, a reward or a message is none of τ²-bench's, or there is no trajectory.
        """
        given = 0
        domains: dict[str, None] = {}
        for path, stored in zip(self.files, self._stored, strict=True):
            for trajectory in stored:
                domains[trajectory.task.domain] = None
                if self._domain is None or trajectory.task.domain == self._domain:
                    self._check_new(trajectory, path)
                    _check_reward(trajectory, path)
                    _check_messages(trajectory, path)
                    self._check_same(trajectory, path)
                    given += 1
                    yield trajectory
                else:
                    self.passed_over += 1
        if not given:
            names = ", ".join(map(str, self.files))
            wanted = "" if self._domain is None else f" of the domain {self._domain!r}"
            there = f" There are episodes of {', '.join(domains)}." if domains else ""
            raise StorageError(f"{names} has no trajectory{wanted}.", f"Choose other files.{there}")

    def _check_new(self, trajectory: Trajectory, path: Path) -> None:
        identity = f"{trajectory.collection_id}\0{trajectory.trajectory_id}".encode(errors="surrogatepass")
        digest = hashlib.blake2b(identity, digest_size=16).digest()
        if digest in self._seen:
            raise StorageError(
                f"Trajectory {trajectory.trajectory_id!r} of {path} came before.",
                "Name each file once, and none that holds the same trajectories as another.",
            )
        self._seen.add(digest)

    def _check_same(self, trajectory: Trajectory, path: Path) -> None:
        if trajectory.outcome is Outcome.ABORTED:
            return  # an episode that never began has no provenance, and none that a fault ended has a reward
        for name in self._same:
            value = getattr(trajectory.provenance, name)
            if value in ("", {}):
                continue
            first = self.conditions.setdefault(name, value)
            if value != first:
                raise StorageError(
                    f"{path}: trajectory {trajectory.trajectory_id!r} has provenance.{name} {said(name, value)}, and "
                    f"those before it have {said(name, first)}.",
                    "Give files of one run each. `report A --against B` compares two runs.",
                )
        task, found = str(trajectory.task), trajectory.provenance.task_hash
        if found and self.task_hashes.setdefault(task, found) != found:
            raise StorageError(
                f"{path}: trajectory {trajectory.trajectory_id!r} was played with another version of the task {task} "
                "than those before it.",
                "Give files of one release of the tasks each.",
            )


def said(name: str, value: object) -> str:
    """A value of a field of `Provenance` as an error shows it. A fingerprint looks like a key, and is none."""
    return repr(str(value)[:12]) if name.endswith("_fingerprint") else shown(value)


def _check_reward(trajectory: Trajectory, path: Path) -> None:
    if trajectory.reward is not None and not 0.0 <= trajectory.reward <= 1.0:
        raise StorageError(
            f"{path}: trajectory {trajectory.trajectory_id!r} has the reward {trajectory.reward:g}, and τ²-bench's are "
            "from 0 to 1.",
            "Give rewards as they were collected, without what a trainer made of them.",
        )


def _check_messages(trajectory: Trajectory, path: Path) -> None:
    for place, message in enumerate(trajectory.messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise StorageError(
                f"{path}: trajectory {trajectory.trajectory_id!r} has messages[{place}] without a role.",
                "Give messages as they were collected.",
            )
