"""Reading and writing trajectories: JSONL files and Parquet datasets.

Invariant: what a path holds is whole, and comes back as it was. A line or a part that has been written stays, whatever
happens to the next one; every array (log-probs bit for bit), None and text returns equal in both formats.

* `name.jsonl`: one JSON object (`Trajectory.to_dict`) a line, UTF-8.
* `name.parquet`: a directory with one `part-00000.parquet` per `append()`, written under a hidden name and moved into
  place when complete. Columns as `SCHEMA` says; pandas, pyarrow, DuckDB and Hugging Face `datasets` read the directory.

Free-form values (messages, the evaluator's record, a fault) are kept as JSON in both formats. Their text may hold lone
surrogates, which UTF-8 cannot carry but a JSON escape can; such a value is escaped to ASCII, every other stays
readable. (A high surrogate right before a low one comes back as the one character that the pair stands for.)

A log-prob or reward that is NaN or infinite is refused: JSON has no such number, and no trainer has a use for it.

A path has one writer at a time. Everything here blocks: an event loop calls it through a thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rollout_service.errors import StorageError
from rollout_service.trajectory import SCHEMA_VERSION, Trajectory

VERSION_KEY = "rollout_service.schema_version"
"""Key of the schema version in the metadata of a Parquet part."""

_ROW_GROUP = 128
"""Trajectories that are built, or read, at once: about 35 MB of arrays at 20,000 tokens each."""

_PART = 512
"""Trajectories in each part of a `write()`: what is lost at most when the disk fills up."""

_OPENING = b'{"schema_version":'
"""What every JSONL line starts with."""


def _columns(kind: pa.DataType, names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, kind) for name in names.split()]


_TURN = [
    *_columns(pa.int32(), "start end cached_tokens message_index"),
    *_columns(pa.string(), "finish_reason"),
    *_columns(pa.list_(pa.string()), "tool_calls"),
    *_columns(pa.float64(), "policy_seconds"),
]
_TOKENS = [
    *_columns(pa.list_(pa.int32()), "token_ids weight_versions"),
    *_columns(pa.list_(pa.uint8()), "loss_mask"),
    *_columns(pa.list_(pa.float32()), "logprobs"),
]
_SEGMENT = [*_TOKENS, ("prompt_length", pa.int32()), ("turns", pa.list_(pa.struct(_TURN)))]
_TIMING = "queue_seconds policy_seconds user_seconds environment_seconds evaluation_seconds"
_USER_USAGE = [
    *_columns(pa.int64(), "prompt_tokens completion_tokens requests failed_requests"),
    *_columns(pa.float64(), "cost_usd"),
]
_PROVENANCE = (
    "model tokenizer tokenizer_fingerprint template_fingerprint history sampling agent user evaluation "
    "tau2_distribution tau2_version service_version"
)
_TASK = {"domain": "task_domain", "split": "task_split", "task_id": "task_id", "index": "task_index"}
_JSON = ("messages", "reward_info", "fault", "database_hashes")

SCHEMA = pa.schema(
    [
        *_columns(pa.string(), "trajectory_id collection_id group_id"),
        *_columns(pa.int32(), "sample_index"),
        *_columns(pa.string(), "task_domain task_split task_id"),
        *_columns(pa.int32(), "task_index"),
        *_columns(pa.int64(), "seed"),
        *_columns(pa.int32(), "attempt"),
        *_columns(pa.string(), "outcome termination_reason"),
        *_columns(pa.float64(), "reward"),
        *_columns(pa.string(), "messages reward_info fault database_hashes"),
        ("timing", pa.struct(_columns(pa.float64(), _TIMING))),
        ("user_usage", pa.struct(_USER_USAGE)),
        ("provenance", pa.struct(_columns(pa.string(), _PROVENANCE))),
        ("segments", pa.list_(pa.struct(_SEGMENT))),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION)},
)
"""The Parquet columns: the fields of `Trajectory`, meaning what they mean there, with `task` flattened.

`messages`, `reward_info`, `fault`, `database_hashes` and `provenance.sampling` are JSON text. Null stands for None, in
`reward`, `reward_info`, `fault`, `user_usage.cost_usd` and a turn's `message_index`, and occurs nowhere else.
"""


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
    path = Path(path)
    records = _parquet_records if _is_parquet(path) else _jsonl_records
    if not path.exists():
        raise StorageError(f"{path} does not exist.", "Check the path.")
    return (_decode(record, where) for where, record in records(path))


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
        self.path = Path(path)
        sink = _ParquetSink if _is_parquet(self.path) else _JsonlSink
        if self.path.exists() and not append:
            raise StorageError(
                f"{self.path} exists already.", "Choose another path, or pass append=True to go on where it ends."
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sink: _ParquetSink | _JsonlSink = sink(self.path)
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
            self._sink.append(batch)
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
        self._file = open(path, "r+b" if path.exists() else "x+b", buffering=0)  # noqa: SIM115
        try:
            self.count, self._end = _whole_lines(path)
            self._file.seek(self._end)
            self._mend(self._file.read(), f"{path}, line {self.count + 1}")
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

    def append(self, trajectories: Sequence[Trajectory]) -> None:
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
        self._file.seek(self._end)

    def close(self) -> None:
        self._file.close()


class _ParquetSink:
    """Adds parts to a directory."""

    def __init__(self, path: Path) -> None:
        if path.is_file():
            raise StorageError(
                f"{path} is a single Parquet file, which cannot grow.",
                "Append to a directory instead: make one named *.parquet and move the file into it.",
            )
        path.mkdir(exist_ok=True)
        parts = _parts(path)
        self._path = path
        self._unfinished = path / ".unfinished"  # readers of datasets pass over names with a leading dot
        self.count = sum(_row_count(part) for part in parts)
        numbers = [part.stem.removeprefix("part-") for part in parts]
        self._next = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)

    def append(self, trajectories: Sequence[Trajectory]) -> None:
        if not trajectories:
            return
        _write_part(self._unfinished, trajectories)
        os.replace(self._unfinished, self._path / f"part-{self._next:05d}.parquet")
        self._next += 1
        self.count += len(trajectories)

    def cut_back(self) -> None:
        self._unfinished.unlink(missing_ok=True)

    def close(self) -> None:
        """A directory holds nothing open."""


def _is_parquet(path: Path) -> bool:
    if path.suffix not in (".jsonl", ".parquet"):
        raise StorageError(f"{path}: unknown ending {path.suffix!r}.", "Use a path that ends in .jsonl or .parquet.")
    return path.suffix == ".parquet"


def _check_version(found: object, where: str) -> None:
    if not found:
        raise StorageError(f"{where} has no schema version.", "Only what rollout_service wrote can be read.")
    if str(found) != str(SCHEMA_VERSION):
        raise StorageError(
            f"{where} has schema version {found}; this release supports version {SCHEMA_VERSION}.",
            "Use the release of tau2-rollout-service that wrote it.",
        )


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


def _unstorable(trajectory: Trajectory, error: Exception) -> StorageError:
    return StorageError(
        f"Trajectory {trajectory.trajectory_id!r} cannot be stored: {error}.",
        "Give its fields the types that rollout_service.trajectory names, and plain JSON values inside.",
    )


def _decode(record: dict[str, Any], where: str) -> Trajectory:
    try:
        return Trajectory.from_dict(record)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StorageError(f"{where} is not a trajectory: {error!r}.", "Leave it out, or restore the file.") from error


def _json(value: object) -> bytes:
    """JSON as UTF-8; as ASCII where a lone surrogate rules UTF-8 out."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _encode_line(trajectory: Trajectory) -> bytes:
    _check_finite(trajectory)
    try:
        return _json(trajectory.to_dict()) + b"\n"
    except (TypeError, ValueError) as error:
        raise _unstorable(trajectory, error) from error


def _decode_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        if line.endswith(b"\n"):
            raise StorageError(f"{where} is not JSON: {error}.", "Delete that line; the others are whole.") from error
        raise StorageError(
            f"{where} is unfinished: the process that wrote it was stopped there.",
            "iterate() gives the trajectories before it; TrajectoryWriter(path, append=True) cuts it off and goes on.",
        ) from error
    _check_version(record.get("schema_version") if isinstance(record, dict) else None, where)
    return record


def _jsonl_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as lines:  # as bytes: text would be split at U+2028 too, which JSON lets stand
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                yield where, _decode_line(line, where)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}.", "Check that it is a file and yours to read.") from error


def _whole_lines(path: Path) -> tuple[int, int]:
    """How many lines end in a newline, and the bytes that they take. The first one's version is checked."""
    count = end = 0
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                if count == 0:
                    _decode_line(line, f"{path}, line 1")
                count += 1
                end += len(line)
    return count, end


def _write_part(path: Path, trajectories: Sequence[Trajectory]) -> None:
    with path.open("wb") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as part:
            for start in range(0, len(trajectories), _ROW_GROUP):
                part.write_table(_to_table(trajectories[start : start + _ROW_GROUP]))
        file.flush()
        os.fsync(file.fileno())  # a name must not become visible before its content is on the disk


def _to_table(trajectories: Sequence[Trajectory]) -> pa.Table:
    for trajectory in trajectories:
        _check_finite(trajectory)
    try:
        rows = [_to_row(trajectory) for trajectory in trajectories]
        columns = {item.name: [row[item.name] for row in rows] for item in SCHEMA if item.name != "segments"}
        return pa.table(columns | {"segments": _segments_column(trajectories)}, schema=SCHEMA)
    except (TypeError, ValueError, OverflowError) as error:
        if len(trajectories) == 1:
            raise _unstorable(trajectories[0], error) from error
        for trajectory in trajectories:  # one of them raises again, by its name
            _to_table([trajectory])
        raise


def _to_row(trajectory: Trajectory) -> dict[str, Any]:
    """Every column but `segments`."""
    row: dict[str, Any] = {item.name: getattr(trajectory, item.name) for item in fields(trajectory)}
    row |= {column: getattr(trajectory.task, name) for name, column in _TASK.items()}
    row |= {name: asdict(row[name]) for name in ("timing", "user_usage", "provenance")}
    row["fault"] = None if trajectory.fault is None else asdict(trajectory.fault)
    row |= {name: None if row[name] is None else _json(row[name]) for name in _JSON}
    row["provenance"]["sampling"] = _json(trajectory.provenance.sampling)
    return row


def _segments_column(trajectories: Sequence[Trajectory]) -> pa.ListArray:
    segments = [segment for trajectory in trajectories for segment in trajectory.segments]
    children = [_token_lists([getattr(segment, name) for segment in segments], kind) for name, kind in _TOKENS]
    children.append(pa.array([segment.prompt_length for segment in segments], type=pa.int32()))
    turns = [[asdict(turn) for turn in segment.turns] for segment in segments]
    children.append(pa.array(turns, type=pa.list_(pa.struct(_TURN))))
    structs = pa.StructArray.from_arrays(children, names=[name for name, _ in _SEGMENT])
    return pa.ListArray.from_arrays(_offsets([len(trajectory.segments) for trajectory in trajectories]), structs)


def _token_lists(arrays: Sequence[npt.NDArray[Any]], kind: pa.ListType) -> pa.ListArray:
    values = np.concatenate([np.empty(0, kind.value_type.to_pandas_dtype()), *arrays])
    return pa.ListArray.from_arrays(_offsets([len(a) for a in arrays]), pa.array(values, type=kind.value_type))


def _offsets(lengths: Sequence[int]) -> pa.Int32Array:
    return pa.array(np.cumsum([0, *lengths]), type=pa.int32())


def _parts(path: Path) -> list[Path]:
    """The Parquet files at `path`, in the order in which they were written."""
    if path.is_file():
        return [path]
    # By length first: part-100000 follows part-99999.
    return sorted(path.glob("[!._]*.parquet"), key=lambda part: (len(part.name), part.name))


def _row_count(part: Path) -> int:
    with _open_part(part) as file:
        return file.metadata.num_rows


@contextmanager
def _open_part(part: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(part) as file:
            _check_version((file.schema_arrow.metadata or {}).get(VERSION_KEY.encode(), b"").decode(), str(part))
            yield file
    except (OSError, KeyError, TypeError, ValueError) as error:  # pyarrow's own errors are among them
        raise StorageError(f"{part} is damaged: {error}.", "Move it away; the other parts are whole.") from error


def _parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in _parts(path):
        row = 0
        with _open_part(part) as file:
            for group in range(file.num_row_groups):
                for record in _to_records(file.read_row_group(group)):
                    yield f"{part}, row {row}", record
                    row += 1


def _to_records(table: pa.Table) -> list[dict[str, Any]]:
    """The inverse of `_to_table`, in the form of `Trajectory.to_dict`, but with arrays."""
    records = table.drop_columns("segments").to_pylist()
    for record, segments in zip(records, _segment_records(table["segments"].combine_chunks()), strict=True):
        record["segments"] = segments
        record["task"] = {name: record[column] for name, column in _TASK.items()}
        record |= {name: json.loads(record[name]) for name in _JSON if record[name] is not None}
        record["provenance"]["sampling"] = json.loads(record["provenance"]["sampling"])
    return records


def _segment_records(column: pa.ListArray) -> list[list[dict[str, Any]]]:
    structs = column.values
    columns: dict[str, list[Any]] = {name: _token_arrays(structs.field(name)) for name, _ in _TOKENS}
    columns |= {name: structs.field(name).to_pylist() for name in ("prompt_length", "turns")}
    flat = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [flat[start:end] for start, end in pairwise(column.offsets.to_pylist())]


def _token_arrays(lists: pa.ListArray) -> list[npt.NDArray[Any]]:
    """One array per list. Copies: a view would be read-only and keep its whole row group in memory."""
    values = lists.values.to_numpy()
    return [values[start:end].copy() for start, end in pairwise(lists.offsets.to_pylist())]
