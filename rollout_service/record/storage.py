"""Reading and writing trajectories: JSONL files and Parquet datasets.

Invariant: what a path holds is whole, and comes back as it was. A line or a part that has been written stays, whatever
happens to the next one; every array (log-probs bit for bit), None and text returns equal in both formats.

* `name.jsonl`: one JSON object (`Trajectory.to_dict`) a line, UTF-8.
* `name.parquet`: a directory with one `part-00000.parquet` per `append()`, written under a hidden name and moved into
  place when complete, see `rollout_service.record.parquet`; pandas and pyarrow read it.

Free-form values (messages, the evaluator's record, a fault) are kept as JSON in both formats. Their text may hold lone
surrogates, which UTF-8 cannot carry but a JSON escape can; such a value is escaped to ASCII, every other stays
readable. (A high surrogate right before a low one comes back as the one character that the pair stands for.)

A log-prob or reward that is NaN or infinite is refused: JSON has no such number, and no trainer has a use for it.

A path has one writer at a time. Everything here blocks: an event loop calls it through a thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import rollout_service.config.arguments as arguments
from rollout_service.errors import StorageError
from rollout_service.record.parquet import ParquetSink, check_version, parquet_rows, to_json, to_record, unstorable
from rollout_service.record.trajectory import Trajectory

_PART = 512
"""Trajectories in each part of a `write()`: what is lost at most when the disk fills up."""

_OPENING = b'{"schema_version":'
"""What every JSONL line starts with."""


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
    """The trajectories of `path` one after the other, with at most one row group of a Parquet file in memory.

    Args:
        path: a `.jsonl` file, a `.parquet` directory, or one `.parquet` file.

    Raises:
        StorageError: at once when there is no such path or its ending is unknown; while iterating, after everything
            that precedes it, when a line or part is damaged, unfinished, or of another schema version.
    """
    return (_taken(found) for found in salvage(path))


def _taken(found: Trajectory | Unreadable) -> Trajectory:
    if isinstance(found, Unreadable):
        raise found.error
    return found


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A place of a path at which no trajectory can be read."""

    where: str
    """The path with the line, the row, or the part."""
    error: StorageError
    """What `iterate` raises there."""
    record: dict[str, Any] | None = None
    """What stands there, where it is JSON of this schema version; None where it may be somebody else's."""

    @property
    def trajectory_id(self) -> str:
        """The record's own, or else the place."""
        found = (self.record or {}).get("trajectory_id")
        return found if isinstance(found, str) and found else self.where


def salvage(path: str | Path) -> Iterator[Trajectory | Unreadable]:
    """As `iterate`, but it goes on behind what cannot be read: a line, an unfinished last line, a row, a row group, or
    a part.

    Raises:
        StorageError: there is no such path, its ending is unknown, or the file system fails.
    """
    path = arguments.path("path", path, StorageError)
    is_parquet = _is_parquet(path)
    if not path.exists():
        raise StorageError(f"{path} does not exist.", "Check the path.")
    return _parquet_records(path) if is_parquet else _jsonl_records(path)


class TrajectoryWriter:
    """Appends trajectories to a path: a context manager.

    A failed `append()` leaves the path whole and the writer usable; what `count` counts is safe.
    """

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        """Open `path`, making its folder when there is none.

        Args:
            path: ends in `.jsonl` or `.parquet`.
            append: go on where an existing path ends. An unfinished last line, left by a process that was killed while
                it wrote, is cut off first.

        Raises:
            StorageError: the ending is unknown, the path exists and `append` is false, it holds something else or
                another schema version, or it cannot be opened.
        """
        self.path = arguments.path("path", path, StorageError)
        arguments.truth("append", append)
        sink = ParquetSink if check_path(self.path, may_exist=append) else _JsonlSink
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sink: ParquetSink | _JsonlSink = sink(self.path)
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be opened for writing: {error}.", "Choose a path that can be written."
            ) from error

    @property
    def count(self) -> int:
        """Trajectories that are safe at the path, those that were there before included."""
        return self._sink.count

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        """Write `trajectories` and sync them to the disk. In Parquet they become one part, all or none.

        Raises:
            StorageError: the disk is full or failed, or a trajectory cannot be stored. JSONL keeps those before it.
        """
        batch = list(trajectories)
        try:
            self._sink.append(_checked(batch))
        except BaseException as error:
            self._sink.cut_back()
            if isinstance(error, OSError):
                raise StorageError(
                    f"{self.path} could not be written: {error}. The {self.count} trajectories that it holds are safe.",
                    "Make room, or choose another disk; then append the rest (a new writer needs append=True).",
                ) from error
            raise

    def close(self) -> None:
        """Close the path. Nothing is pending: every `append()` left it whole."""
        self._sink.close()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _JsonlSink:
    """Appends lines to a file."""

    def __init__(self, path: Path) -> None:
        # Unbuffered: a buffer would keep the rest of a line that failed, and write it when the file is closed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        try:
            self.count, self._end, tail = _survey(path)
            self._mend(tail, f"{path}, line {self.count + 1}")
        except BaseException:
            self._file.close()
            raise

    def _mend(self, tail: bytes, where: str) -> None:
        """Complete or cut off `tail`, a last line without its newline, unless it is no line of ours."""
        if self.count == 0 and tail[: len(_OPENING)] != _OPENING[: len(tail)]:
            raise StorageError(f"{where} is not a trajectory.", "Choose another path: this one is left as it is.")
        if _is_json(tail):  # an editor's work, not a crash's
            _decode_line(tail, where)
            self._write(b"\n")
        self.cut_back()

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        before = self.count, self._end
        for trajectory in trajectories:
            self._write(_encode_line(trajectory))
        try:
            os.fsync(self._file.fileno())  # some file systems say only here that they are full
        except OSError:
            self.count, self._end = before
            raise

    def _write(self, line_end: bytes) -> None:
        rest = memoryview(line_end)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end = self._file.tell()
        self.count += 1

    def cut_back(self) -> None:
        """Remove what follows the last whole line."""
        self._file.truncate(self._end)

    def close(self) -> None:
        self._file.close()


def check_path(path: str | Path, *, may_exist: bool = False) -> bool:
    """Whether trajectories at `path` are Parquet; otherwise they are JSONL. Touches nothing.

    Raises:
        StorageError: the ending is neither, or the path exists though it must not.
    """
    path = arguments.path("path", path, StorageError)
    if path.exists() and not may_exist:
        raise StorageError(f"{path} exists already.", "Choose another path, or append to it, or overwrite it.")
    return _is_parquet(path)


def _is_parquet(path: Path) -> bool:
    if path.suffix not in (".jsonl", ".parquet"):
        raise StorageError(f"{path}: unknown ending {path.suffix!r}.", "Use a path that ends in .jsonl or .parquet.")
    return path.suffix == ".parquet"


def _checked(trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
    """`trajectories`, each checked as it is taken: what could not be read again is not written."""
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


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _encode_line(trajectory: Trajectory) -> bytes:
    try:
        return to_json(trajectory.to_dict()) + b"\n"
    except (TypeError, ValueError) as error:
        raise unstorable(trajectory, error) from error


def _decode_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.endswith(b"\n"):
            raise StorageError(f"{where} is not JSON: {error}.", "Delete that line; the others are whole.") from error
        raise StorageError(
            f"{where} is unfinished: the process that wrote it was stopped there.",
            "iterate() gives the trajectories before it; TrajectoryWriter(path, append=True) cuts it off and goes on.",
        ) from error
    if not isinstance(record, dict):
        record = {}
    check_version(record.get("schema_version"), where)
    return record


def _jsonl_records(path: Path) -> Iterator[Trajectory | Unreadable]:
    try:
        with path.open("rb") as lines:  # as bytes: text would be split at U+2028 too, which JSON lets stand
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                try:
                    record = _decode_line(line, where)
                except StorageError as error:
                    yield Unreadable(where, error)
                else:
                    yield _decode(record, where)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}.", "Check that it is a file and yours to read.") from error


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


def _survey(path: Path) -> tuple[int, int, bytes]:
    """How many lines end in a newline, the bytes that they take, what follows. The first one's version is checked."""
    count = end = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return count, end, line
            if count == 0:
                _decode_line(line, f"{path}, line 1")
            count += 1
            end += len(line)
    return count, end, b""
