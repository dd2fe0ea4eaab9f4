"""Reading and writing trajectories: JSONL files and Parquet datasets.

Invariant: what was written stays and is read back equal: every array (log-probs bit for bit), None and text, in both
formats. A failed write harms nothing that was written before it.

* `name.jsonl`: see `rollout_service.record.jsonl`.
* `name.parquet`: a directory with one `part-00000.parquet` for each `append()`, written under a hidden name and renamed
  when complete, see `rollout_service.record.parquet`. pandas and pyarrow read it.

Free-form values (messages, the evaluator's record, a fault) are JSON in both formats. A value whose text holds a lone
surrogate, which UTF-8 cannot carry, is escaped to ASCII. (A high surrogate right before a low one is read back as the
one character that the pair encodes.)

A log-prob or a reward that is NaN or infinite is refused: JSON has no such number, and nothing can be trained on it.

A path has one writer at a time. Everything here blocks, so an event loop calls it in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import rollout_service.config.arguments as arguments
from rollout_service.errors import StorageError
from rollout_service.record.encoding import unstorable
from rollout_service.record.jsonl import JsonlSink, jsonl_rows
from rollout_service.record.parquet import ParquetSink, parquet_rows, to_record
from rollout_service.record.replacement import Replacement, settle
from rollout_service.record.trajectory import Trajectory

_PART = 512
"""Trajectories in each part of a `write()`. At most these are lost when the disk fills up."""


def write(path: str | Path, trajectories: Iterable[Trajectory], *, append: bool = False) -> None:
    """Write `trajectories` to `path`, which ends in `.jsonl` or `.parquet`; see `TrajectoryWriter`.

    Raises:
        StorageError: as `TrajectoryWriter` does.
    """
    rest = iter(trajectories)
    with TrajectoryWriter(path, append=append) as writer:
        while chunk := list(islice(rest, _PART)):
            writer.append(chunk)


def read(path: str | Path) -> list[Trajectory]:
    """All trajectories of `path`, in the order in which they were written.

    Raises:
        StorageError: as `iterate` does.
    """
    return list(iterate(path))


def iterate(path: str | Path) -> Iterator[Trajectory]:
    """The trajectories of `path` one after another, with at most one row group of a Parquet file in memory.

    Args:
        path: a `.jsonl` file, a `.parquet` directory, or one `.parquet` file.

    Raises:
        StorageError: at once, if there is no such path or its ending is unknown; while iterating, at a line or a part
            that is damaged, unfinished, or of another schema version.
    """
    return (_taken(found) for found in salvage(path))


def _taken(found: Trajectory | Unreadable) -> Trajectory:
    if isinstance(found, Unreadable):
        raise found.error
    return found


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A place in a path where no trajectory can be read."""

    where: str
    """The path, and the line, the row or the part in it."""
    error: StorageError
    """The error that `iterate` raises there."""
    record: dict[str, Any] | None = None
    """The JSON there, if it has this schema version; None: this service may not have written it."""

    @property
    def trajectory_id(self) -> str:
        """The record's own id, or else the place."""
        found = (self.record or {}).get("trajectory_id")
        return found if isinstance(found, str) and found else self.where


def salvage(path: str | Path) -> Iterator[Trajectory | Unreadable]:
    """As `iterate`, but it goes on after what cannot be read: a line, an unfinished last line, a row, a row group or a
    part.

    Raises:
        StorageError: there is no such path, its ending is unknown, or the file system fails.
    """
    path = arguments.path("path", path, StorageError)
    is_parquet = _is_parquet(path)
    if not path.exists():
        raise StorageError(f"{path} does not exist.", f"Check the path.{_cut_off(path)}")
    return _parquet_records(path) if is_parquet else _jsonl_records(path)


def _cut_off(path: Path) -> str:
    is_there = path.with_name(f".old-{path.name}").exists()
    return " Its replacement was cut off; `collect --resume` with it as --output finishes that." if is_there else ""


class TrajectoryWriter:
    """Appends trajectories to a path: a context manager.

    After a failed `append()` the path is whole and the writer usable. The trajectories in `count` are safe.
    """

    def __init__(self, path: str | Path, *, append: bool = False, overwrite: bool = False) -> None:
        """Open `path`, making its folder when there is none.

        Args:
            path: ends in `.jsonl` or `.parquet`.
            append: add to an existing path. An unfinished last line, left by a process that was killed while it wrote,
                is removed first.
            overwrite: replace an existing path once the first `append()` is on the disk; until then it stays.

        Raises:
            StorageError: the ending is unknown, the path exists and neither is set, both are set, the path does not
                hold trajectories of this schema version, or it cannot be opened.
        """
        self.path = arguments.path("path", path, StorageError)
        arguments.truth("append", append)
        arguments.truth("overwrite", overwrite)
        if append and overwrite:
            raise StorageError("append and overwrite exclude each other.", "Leave out one of them.")
        finish_replacement(self.path)
        sink = ParquetSink if check_path(self.path, may_exist=append or overwrite) else JsonlSink
        if append:
            check_can_grow(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._replacement = Replacement(self.path) if overwrite and self.path.exists() else None
            self._sink: ParquetSink | JsonlSink = sink(self.written)
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be opened for writing: {error}.", "Choose a path that can be written."
            ) from error

    @property
    def written(self) -> Path:
        """Where trajectories are written: the path, or beside it, as long as the old file has its place."""
        return self.path if self._replacement is None else self._replacement.beside

    @property
    def count(self) -> int:
        """Trajectories that are safe at the path, including those from before; 0 as long as the old file is there that
        they are to replace."""
        return self._sink.count if self._replacement is None else 0

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        """Write `trajectories` and sync them to the disk. In Parquet they become one part, all or none.

        Raises:
            StorageError: the disk is full or fails, or a trajectory cannot be stored. JSONL keeps those before it.
        """
        batch = list(trajectories)
        try:
            self._sink.append(_checked(batch))
            if batch and self._replacement is not None:
                self._replacement.take_place()
                self._replacement = None
                self._sink.moved(self.path)
        except BaseException as error:
            self._sink.cut_back()
            if isinstance(error, OSError):
                held = f"The {self.count} trajectories that it holds are safe."
                raise StorageError(
                    f"{self.path} could not be written: {error}. {'It is as it was.' if self._replacement else held}",
                    "Make room, or choose another disk; then append the rest (a new writer needs append=True).",
                ) from error
            raise

    def close(self) -> None:
        """Close the path. Nothing is pending after an `append()`."""
        self._sink.close()
        if self._replacement is not None:
            self._replacement.discard()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_path(path: str | Path, *, may_exist: bool = False) -> bool:
    """Whether trajectories at `path` are Parquet; otherwise they are JSONL. Touches nothing.

    Raises:
        StorageError: the ending is neither, or the path exists and `may_exist` is false.
    """
    path = arguments.path("path", path, StorageError)
    if path.exists() and not may_exist:
        raise StorageError(f"{path} exists already.", "Choose another path, or append to it, or overwrite it.")
    return _is_parquet(path)


def finish_replacement(path: Path) -> None:
    """Finish the replacement of a Parquet folder by another that was cut off, see `settle`.

    Raises:
        StorageError: the file system fails.
    """
    try:
        settle(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be given its place: {error}.", f"Rename .new-{path.name} or .old-{path.name} yourself."
        ) from error


def check_place(path: Path) -> None:
    """Check that trajectories can be written at `path`, as far as its folder tells. Touches nothing.

    Raises:
        StorageError: a folder above it is none, or it cannot be written there.
    """
    place = next(found for found in (path, *path.absolute().parents) if found.exists())
    if place != path and not place.is_dir():
        raise StorageError(f"{path} cannot be written: {place} is not a folder.", "Choose another path.")
    if not os.access(place, os.W_OK):
        raise StorageError(f"{path} cannot be written: {place} is not writable.", "Choose a path that can be written.")


def check_can_grow(path: Path) -> None:
    """Check that an existing path is a `.jsonl` file or a `.parquet` directory.

    Raises:
        StorageError: it is a directory that should be a file, or a single Parquet file.
    """
    if path.is_file() and path.suffix == ".parquet":
        raise StorageError(
            f"{path} is a single Parquet file, which cannot grow.",
            "Append to a directory instead: make one named *.parquet and move the file into it.",
        )
    if path.is_dir() and path.suffix == ".jsonl":
        raise StorageError(f"{path} is a directory.", "Choose the path of a file.")


def _is_parquet(path: Path) -> bool:
    if path.suffix not in (".jsonl", ".parquet"):
        raise StorageError(f"{path}: unknown ending {path.suffix!r}.", "Use a path that ends in .jsonl or .parquet.")
    return path.suffix == ".parquet"


def _checked(trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
    """`trajectories`, each checked before it is written, so that it can be read again."""
    for trajectory in trajectories:
        try:
            trajectory.check_types()
        except ValueError as error:
            raise unstorable(trajectory, error) from error
        _check_finite(trajectory)
        yield trajectory


def _check_finite(trajectory: Trajectory) -> None:
    numbers = [(f"log-prob of segment {i}", segment.logprobs) for i, segment in enumerate(trajectory.segments)]
    if trajectory.reward is not None:
        numbers.append(("reward", np.asarray([trajectory.reward])))
    for what, values in numbers:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise StorageError(
                f"Trajectory {trajectory.trajectory_id!r} cannot be stored: {what} at {bad[0]} is {values[bad[0]]}.",
                "Leave the trajectory out: nothing can be trained on it.",
            )


def _decode(record: dict[str, Any], where: str) -> Trajectory | Unreadable:
    try:
        return Trajectory.from_dict(record)
    except ValueError as error:
        return Unreadable(where, _not_a_trajectory(where, error), record)


def _not_a_trajectory(where: str, error: Exception) -> StorageError:
    return StorageError(f"{where} is not a trajectory: {error}.", "Leave it out, or restore the file.")


def _jsonl_records(path: Path) -> Iterator[Trajectory | Unreadable]:
    for where, row in jsonl_rows(path):
        yield Unreadable(where, row) if isinstance(row, StorageError) else _decode(row, where)


def _parquet_records(path: Path) -> Iterator[Trajectory | Unreadable]:
    for where, row in parquet_rows(path):
        if isinstance(row, StorageError):
            yield Unreadable(where, row)
            continue
        try:
            record = to_record(row)
        except (ValueError, RecursionError) as error:
            yield Unreadable(where, _not_a_trajectory(where, error), row)
        else:
            yield _decode(record, where)
