"""Identities: which episodes a file holds.

Invariant: what a process that was stopped left at the file's end is no episode; damage elsewhere is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_service.errors import StorageError
from rollout_service.record.jsonl import UnfinishedLine, jsonl_rows
from rollout_service.record.parquet import parquet_identities


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a stored episode from all others."""

    collection_id: str
    group_id: str
    sample_index: int
    seed: int
    aborted: bool
    """Whether a fault or a cancellation stopped it for good."""

    @property
    def group(self) -> int | None:
        """Number of the group in its collection; None: the group was not named by a collection."""
        number = self.group_id.removeprefix(f"{self.collection_id}-")
        return int(number) if number != self.group_id and number.isdecimal() else None


def identities(path: Path) -> Iterator[Identity]:
    """The identity of each whole trajectory at `path`, which exists.

    Raises:
        StorageError: a line or a part is damaged, or of another schema version.
    """
    for where, row in parquet_identities(path) if path.suffix == ".parquet" else jsonl_rows(path):
        if isinstance(row, UnfinishedLine):
            return
        if isinstance(row, StorageError):
            raise row
        yield _identity(row, where)


def _identity(row: dict[str, Any], where: str) -> Identity:
    names = {"collection_id": str, "group_id": str, "sample_index": int, "seed": int, "outcome": str}
    for name, kind in names.items():
        if not isinstance(row.get(name), kind):
            raise StorageError(f"{where} is not a trajectory: {name} is {row.get(name)!r}.", "Restore the file.")
    return Identity(
        row["collection_id"], row["group_id"], row["sample_index"], row["seed"], row["outcome"] == "aborted"
    )
