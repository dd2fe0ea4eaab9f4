"""The Parquet form of trajectories: a directory of parts, and the columns of a part.

Invariant: a part is whole or has no name that a reader sees, and what is read from it equals what was written. The
arrays go in and out as flat buffers, never token by token; a row has the form of `Trajectory.to_dict` otherwise.

What the JSONL form does in the same way (`check_version`, `unstorable`, `to_json`) stands here too, because
`rollout_service.record.storage`, which has that form, imports this module.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rollout_service.errors import StorageError
from rollout_service.record.schema import array_dtype, hints, or_none, to_plain
from rollout_service.record.trajectory import SCHEMA_VERSION, TaskRef, TokenSegment, Trajectory

VERSION_KEY = "rollout_service.schema_version"
"""Key of the schema version in the metadata of a Parquet part."""

_ROW_GROUP = 128
"""Trajectories that are built, or read, at once: about 35 MB of arrays at 20,000 tokens each."""


def _is_json(hint: Any) -> bool:
    """Whether values of this type are JSON text in Parquet: those of free form, and a dataclass that may be None."""
    inner, may_be_none = or_none(hint)
    if get_origin(inner) is list:
        return _is_json(get_args(inner)[0])
    return get_origin(inner) is dict or (may_be_none and is_dataclass(inner))


def _kind(hint: Any) -> pa.DataType:
    """The Arrow type of a field."""
    if _is_json(hint):
        return pa.string()
    inner, _ = or_none(hint)
    if (dtype := array_dtype(inner)) is not None:
        return pa.list_(pa.from_numpy_dtype(dtype))
    if get_origin(inner) is list:
        return pa.list_(_kind(get_args(inner)[0]))
    if is_dataclass(inner):
        return pa.struct([(name, _kind(part)) for name, part in hints(inner).items()])
    return next(kind for type_, kind in _SCALARS.items() if issubclass(inner, type_))


_SCALARS = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_TASK = {name: name if name.startswith("task_") else f"task_{name}" for name in hints(TaskRef)}


def _columns() -> Iterator[tuple[str, pa.DataType]]:
    for name, hint in hints(Trajectory).items():
        if name == "task":
            yield from ((column, _kind(hints(TaskRef)[part])) for part, column in _TASK.items())
        else:
            yield name, _kind(hint)


SCHEMA = pa.schema(list(_columns()), metadata={VERSION_KEY: str(SCHEMA_VERSION)})
"""The Parquet columns: the fields of `Trajectory`, meaning what they mean there, with `task` flattened.

What is of free form (`messages`, `reward_info`, `fault`, `database_hashes`, `provenance.sampling`) is JSON text. Null
stands for None, and occurs only where a field's type has None.
"""


class ParquetSink:
    """Adds parts to a directory."""

    def __init__(self, path: Path) -> None:
        """Open the directory `path`, or make it; unlike its part files, one that exists can grow."""
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

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        """Add them as one part, or none at all. After a failure, `cut_back()`."""
        batch = list(trajectories)
        if not batch:
            return
        _write_part(self._unfinished, batch)
        os.replace(self._unfinished, self._path / f"part-{self._next:05d}.parquet")
        self._next += 1
        self.count += len(batch)

    def cut_back(self) -> None:
        """Remove what a failed `append()` left."""
        self._unfinished.unlink(missing_ok=True)

    def close(self) -> None:
        """A directory holds nothing open."""


def _write_part(path: Path, trajectories: Sequence[Trajectory]) -> None:
    with path.open("wb") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as part:
            for start in range(0, len(trajectories), _ROW_GROUP):
                part.write_table(_to_table(trajectories[start : start + _ROW_GROUP]))
        file.flush()
        os.fsync(file.fileno())  # a name must not become visible before its content is on the disk


def _to_table(trajectories: Sequence[Trajectory]) -> pa.Table:
    try:
        rows = [_to_row(trajectory) for trajectory in trajectories]
        columns = {name: [row[name] for row in rows] for name in SCHEMA.names if name != "segments"}
        return pa.table(columns | {"segments": _segments_column(trajectories)}, schema=SCHEMA)
    except (TypeError, ValueError, OverflowError) as error:
        if len(trajectories) == 1:
            raise unstorable(trajectories[0], error) from error
        for trajectory in trajectories:  # one of them raises again, by its name
            _to_table([trajectory])
        raise


def _to_row(trajectory: Trajectory) -> dict[str, Any]:
    """Every column but `segments`."""
    others = {name: hint for name, hint in hints(Trajectory).items() if name != "segments"}
    row = {name: _packed(hint, getattr(trajectory, name)) for name, hint in others.items()}
    task = row.pop("task")
    return row | {column: task[name] for name, column in _TASK.items()}


def _packed(hint: Any, value: Any) -> Any:
    """A field's value as its column takes it."""
    inner, _ = or_none(hint)
    if value is None:
        return None
    if _is_json(hint):
        return to_json(to_plain(value))
    if is_dataclass(inner):
        return {name: _packed(part, getattr(value, name)) for name, part in hints(inner).items()}
    if get_origin(inner) is list:
        return [_packed(get_args(inner)[0], item) for item in value]
    return value


def _unpacked(hint: Any, value: Any) -> Any:
    """The inverse of `_packed`, in plain form. What a part of an older release lacks stays out."""
    inner, _ = or_none(hint)
    if value is None:
        return None
    if _is_json(hint):
        return json.loads(value)
    if is_dataclass(inner):
        return {name: _unpacked(part, value[name]) for name, part in hints(inner).items() if name in value}
    if get_origin(inner) is list:
        return [_unpacked(get_args(inner)[0], item) for item in value]
    return value


def _segments_column(trajectories: Sequence[Trajectory]) -> pa.ListArray:
    segments = [segment for trajectory in trajectories for segment in trajectory.segments]
    children = []
    for name, hint in hints(TokenSegment).items():
        values = [getattr(segment, name) for segment in segments]
        if array_dtype(hint) is None:
            children.append(pa.array([_packed(hint, value) for value in values], type=_kind(hint)))
        else:
            children.append(_token_lists(values, _kind(hint)))
    structs = pa.StructArray.from_arrays(children, names=list(hints(TokenSegment)))
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
    with _damage(part), pq.ParquetFile(part) as file:
        check_version((file.schema_arrow.metadata or {}).get(VERSION_KEY.encode(), b"").decode(), str(part))
        yield file


@contextmanager
def _damage(part: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError) as error:  # pyarrow's own errors are among them
        problem = f"{part} is damaged: {str(error).rstrip('.')}."
        raise StorageError(problem, "Move it away; the other parts are whole.") from error


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | StorageError]]:
    """Where each row of a directory or part stands, and its columns for `to_record`. In place of what cannot be read,
    a part or a row group, the error that says why; what follows it comes all the same."""
    for part in _parts(path):
        try:
            with _open_part(part) as file:
                yield from _part_rows(file, part)
        except StorageError as error:
            yield str(part), error


def _part_rows(file: pq.ParquetFile, part: Path) -> Iterator[tuple[str, dict[str, Any] | StorageError]]:
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        try:
            with _damage(part):
                rows = _rows(file.read_row_group(group))
        except StorageError as error:
            yield f"{part}, rows {first} to {first + count - 1}", error
        else:
            yield from ((f"{part}, row {first + number}", row) for number, row in enumerate(rows))
        first += count


def to_record(row: dict[str, Any]) -> dict[str, Any]:
    """A row as what `Trajectory.from_dict` takes.

    Raises:
        ValueError: text that should be JSON is not.
    """
    columns = {name: hint for name, hint in hints(Trajectory).items() if name in row and name != "segments"}
    record = {name: _unpacked(hint, row[name]) for name, hint in columns.items()}
    record["task"] = {name: row[column] for name, column in _TASK.items() if column in row}
    kinds = hints(TokenSegment)
    record["segments"] = row["segments"] and [
        {name: _unpacked(kinds[name], value) for name, value in segment.items()} for segment in row["segments"]
    ]
    return record


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """The inverse of `_to_table`, but for what is JSON text."""
    rows: list[dict[str, Any]] = table.drop_columns("segments").to_pylist()
    for row, segments in zip(rows, _segment_rows(table["segments"].combine_chunks()), strict=True):
        row["segments"] = segments
    return rows


def _segment_rows(column: pa.ListArray) -> list[list[dict[str, Any]] | None]:
    structs = column.values
    columns: dict[str, list[Any]] = {}
    for name, hint in hints(TokenSegment).items():
        if structs.type.get_field_index(name) >= 0:
            values = structs.field(name)
            columns[name] = values.to_pylist() if array_dtype(hint) is None else _token_arrays(values)
    flat = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    places = zip(column.is_valid().to_pylist(), pairwise(column.offsets.to_pylist()), strict=True)
    return [flat[start:end] if is_there else None for is_there, (start, end) in places]


def _token_arrays(lists: pa.ListArray) -> list[Any]:
    """One array per list. Copies: a view would be read-only and keep its whole row group in memory. Where somebody put
    a null, lists instead, with None in its place."""
    if lists.null_count or lists.values.null_count:
        return list(lists.to_pylist())
    values = lists.values.to_numpy()
    return [values[start:end].copy() for start, end in pairwise(lists.offsets.to_pylist())]


def check_version(found: object, where: str) -> None:
    """Refuse a record or part at `where` whose schema version is not this release's."""
    if not found:
        raise StorageError(f"{where} has no schema version.", "Only what rollout_service wrote can be read.")
    if str(found) != str(SCHEMA_VERSION):
        raise StorageError(
            f"{where} has schema version {found}; this release supports version {SCHEMA_VERSION}.",
            "Use the release of tau2-rollout-service that wrote it.",
        )


def unstorable(trajectory: Trajectory, error: Exception) -> StorageError:
    """The error that names the trajectory whose fields have wrong types or values."""
    return StorageError(
        f"Trajectory {trajectory.trajectory_id!r} cannot be stored: {error}.",
        "Give its fields the types that rollout_service.record.trajectory names, and plain JSON values inside.",
    )


def to_json(value: object) -> bytes:
    """JSON as UTF-8; as ASCII where a lone surrogate rules UTF-8 out."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
