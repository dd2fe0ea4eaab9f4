"""The JSONL form of trajectories: one JSON object (`Trajectory.to_dict`) a line, in UTF-8.

Invariant: a line that was written stays, and a file ends in a whole line after every call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rollout_service.errors import StorageError
from rollout_service.record.encoding import check_version, to_json, unstorable
from rollout_service.record.trajectory import Trajectory

_OPENING = b'{"schema_version":'
"""What every JSONL line starts with."""


class UnfinishedLine(StorageError):
    """The last line breaks off: the process that wrote it was stopped there."""


class JsonlSink:
    """Appends lines to a file."""

    def __init__(self, path: Path) -> None:
        # Unbuffered: a buffer would keep the rest of a failed line and write it when the file is closed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        try:
            self.count, self._end, tail = _survey(path)
            self._repair(tail, f"{path}, line {self.count + 1}")
        except BaseException:
            self._file.close()
            raise

    def _repair(self, tail: bytes, where: str) -> None:
        """Complete `tail`, a last line without its newline, or cut it off.

        Raises:
            StorageError: the file is not one of trajectories.
        """
        if self.count == 0 and tail[: len(_OPENING)] != _OPENING[: len(tail)]:
            raise StorageError(f"{where} is not a trajectory.", "Choose another path: this one is left as it is.")
        if _is_json(tail):  # left by an editor, not by a crash
            _decode_line(tail, where)
            self._write(b"\n")
        self.cut_back()

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        """Write a line for each and sync the file. After a failure, call `cut_back()`."""
        before = self.count, self._end
        for trajectory in trajectories:
            self._write(_encode_line(trajectory))
        try:
            os.fsync(self._file.fileno())  # some file systems report only here that they are full
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

    def moved(self, path: Path) -> None:
        """Do nothing: an open file can be renamed."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | StorageError]]:
    """Where each line stands, and its record; or, for a line that cannot be read, the error that says why.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        with path.open("rb") as lines:  # as bytes: text would be split at U+2028 too, which JSON allows
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                try:
                    yield where, _decode_line(line, where)
                except StorageError as error:
                    yield where, error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}.", "Check that it is a file and yours to read.") from error


def whole_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their newline, which the last one gets if it is whole. One that breaks off is left out."""
    for line in lines:
        if line.endswith(b"\n"):
            yield line
        elif _is_json(line):
            yield line + b"\n"


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
        raise UnfinishedLine(
            f"{where} is unfinished: the process that wrote it was stopped there.",
            "iterate() gives the trajectories before it; TrajectoryWriter(path, append=True) cuts it off and goes on.",
        ) from error
    if not isinstance(record, dict):
        record = {}
    check_version(record.get("schema_version"), where)
    return record


def _survey(path: Path) -> tuple[int, int, bytes]:
    """The number of lines that end in a newline, their bytes, and what follows them.

    Raises:
        StorageError: the first line is not a record of this schema version.
    """
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
