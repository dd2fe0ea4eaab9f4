"""Manifest: what was asked for when the trajectories of a file were collected.

Invariant: it is whole whenever it is there, and it stands before the first trajectory of its collection does. So a file
that lost its end, or was never begun, can still be completed.

A trajectory says what it is, but not what else was asked for. That stands beside a `name.jsonl` as
`name.jsonl.collection.json`, and in a `name.parquet` as `_collection.json`, which readers of datasets pass over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rollout_service.record.schema as schema
from rollout_service.errors import StorageError

VERSION = 1
"""Raised whenever a reader of the version before would misread a manifest."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for in one collection."""

    collection_id: str
    n: int | None
    """Episodes; None: every task of the selection once, times the group size."""
    group_size: int
    first_draw: int
    """Number of tasks of the selection's sequence that come before the collection's first one."""
    episodes: int
    """Number of episodes that the whole collection has."""
    settings: dict[str, Any]
    """Settings that shape its trajectories, as JSON values by dotted name. `tasks.…` is the selection as it was asked
    for, seed included."""

    @property
    def next_draw(self) -> int:
        """Number of tasks of the sequence up to the collection's last one."""
        return self.first_draw + self.episodes // self.group_size


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was asked for in the collections of a file."""

    collections: list[Asked]
    """In the order in which they were begun."""
    others: list[str] = field(default_factory=list)
    """Ids of collections that are in the file too, but of which nothing else is known."""

    @property
    def known(self) -> set[str]:
        """Ids of every collection that the file may hold."""
        return {*self.others, *(asked.collection_id for asked in self.collections)}

    def write(self, path: Path) -> None:
        """Write it for the trajectories at `path`, in place of what is there.

        Raises:
            OSError: the file system fails.
        """
        target = manifest_path(path)
        unfinished = target.with_name(f".{target.name}")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump({"version": VERSION} | schema.to_plain(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)


def manifest_path(path: Path) -> Path:
    """Where the manifest of the trajectories at `path` stands."""
    return path / "_collection.json" if path.suffix == ".parquet" else path.with_name(f"{path.name}.collection.json")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the trajectories at `path`; None: there is none.

    Raises:
        StorageError: it cannot be read, or is of another version.
    """
    where = manifest_path(path)
    try:
        record = json.loads(where.read_text(encoding="utf-8"))
        if not isinstance(record, Mapping) or "version" not in record:
            raise ValueError("it has no version")
        if record["version"] == VERSION:
            values = {name: value for name, value in record.items() if name != "version"}
            manifest: Manifest = schema.from_plain(Manifest, values)
            return manifest
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{where} cannot be read: {error}.", "Restore it; it says what was asked for when the file was collected."
        ) from error
    raise StorageError(
        f"{where} has version {record['version']}; this release supports version {VERSION}.",
        "Use the release of tau2-rollout-service that wrote it.",
    )
