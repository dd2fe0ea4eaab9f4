"""The Parquet form of trajectories: a directory of parts, and the columns of a part.

Invariant: a reader sees only whole parts, and reads what was written. Arrays are written and read as flat buffers,
never token by token. The rest of a row has the form of `Trajectory.to_dict`.
"""

from __future__ import annotations

import functools
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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rollout_service.errors import StorageError
from rollout_service.record.encoding import check_version, to_json, unstorable
from rollout_service.record.schema import array_dtype, hints, or_none, to_plain
from rollout_service.record.trajectory import SCHEMA_VERSION, TaskRef, TokenSegment, Trajectory

VERSION_KEY = "rollout_service.schema_version"
"""Key of the schema version in the metadata of a Parquet part."""

_MAGIC = b"PAR1"
"""What every Parquet file begins and ends with."""

_SMALLEST_PART = 12
"""Bytes of both magics and the length of the footer between them."""

_IDENTITY = ("collection_id", "group_id", "sample_index", "seed", "outcome")

_ROW_GROUP = 128
"""Trajectories that are written or read at once: about 35 MB of arrays at 20,000 tokens each."""


def _is_json(hint: Any) -> bool:
    """Whether Parquet holds values of this type as JSON text: free-form values, and dataclasses that may be None."""
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

Free-form values (such as `messages` and `reward_info`) and `fault` are JSON text. Null means None, and occurs only
where a field's type allows None.
"""


class ParquetSink:
    """Adds parts to a directory."""

    def __init__(self, path: Path) -> None:
        """Open the directory `path`, or make it."""
        path.mkdir(exist_ok=True)
        parts = _parts(path)
        self._path = path
        self._unfinished = path / ".unfinished"  # readers of datasets skip names with a leading dot
        self.count = sum(_row_count(part) for part in parts)
        numbers = [part.stem.removeprefix("part-") for part in parts]
        self._next = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        """Add them as one part, all or none. After a failure, call `cut_back()`."""
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

    def moved(self, path: Path) -> None:
        """Go on under another name of the directory."""
        self._path, self._unfinished = path, path / self._unfinished.name

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _write_part(path: Path, trajectories: Sequence[Trajectory]) -> None:
    with path.open("wb") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as part:
            for start in range(0, len(trajectories), _ROW_GROUP):
                part.write_table(to_table(trajectories[start : start + _ROW_GROUP]))
        file.flush()
        os.fsync(file.fileno())  # a part's name must not appear before its content is on the disk


def to_table(trajectories: Sequence[Trajectory]) -> pa.Table:
    """Trajectories as rows of `SCHEMA`.

    Raises:
        StorageError: a value of one of them cannot be stored.
    """
    try:
        rows = [_to_row(trajectory) for trajectory in trajectories]
        columns = {name: [row[name] for row in rows] for name in SCHEMA.names if name != "segments"}
        return pa.table(columns | {"segments": _segments_column(trajectories)}, schema=SCHEMA)
    except (TypeError, ValueError, OverflowError) as error:
        if len(trajectories) == 1:
            raise unstorable(trajectories[0], error) from error
        for trajectory in trajectories:  # the bad one raises again, with its name in the error
            to_table([trajectory])
        raise


def _to_row(trajectory: Trajectory) -> dict[str, Any]:
    """Every column but `segments`."""
    others = {name: hint for name, hint in hints(Trajectory).items() if name != "segments"}
    row = {name: _packed(hint, getattr(trajectory, name)) for name, hint in others.items()}
    task = row.pop("task")
    return row | {column: task[name] for name, column in _TASK.items()}


def _packed(hint: Any, value: Any) -> Any:
    """A field's value as its column holds it."""
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
    """The inverse of `_packed`, in plain form. Fields that a part of an older release lacks are left out."""
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


def unfinished_part(path: Path) -> Path | None:
    """The last part of the directory, if it breaks off before its end; else None."""
    last = parts[-1] if path.is_dir() and (parts := _parts(path)) else None
    return last if last is not None and not _has_footer(last) else None


def _has_footer(part: Path) -> bool:
    with part.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _SMALLEST_PART:
            return False
        file.seek(-len(_MAGIC), os.SEEK_END)
        return file.read() == _MAGIC


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
    """The rows of a directory or a part: where each stands, and its columns for `to_record`. A part or a row group that
    cannot be read yields one error in place of its rows, and reading goes on after it."""
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
                rows = to_rows(file.read_row_group(group))
        except StorageError as error:
            yield f"{part}, rows {first} to {first + count - 1}", error
        else:
            yield from ((f"{part}, row {first + number}", row) for number, row in enumerate(rows))
        first += count


def parquet_identities(path: Path) -> Iterator[tuple[str, dict[str, Any] | StorageError]]:
    """Where each row stands, and only the columns that tell episodes apart. A last part that breaks off has no rows.

    Raises:
        StorageError: another part is damaged, or of another schema version.
    """
    unfinished = unfinished_part(path)
    for part in _parts(path):
        if part != unfinished:
            with _open_part(part) as file, _damage(part):
                rows = file.read(columns=list(_IDENTITY)).to_pylist()
            yield from ((f"{part}, row {number}", row) for number, row in enumerate(rows))


def remove_rows(path: Path, **columns: str) -> None:
    """Remove the rows of a directory whose columns have these values. A part is replaced as a whole; one without rows
    goes."""
    for part in _parts(path):
        table = pq.read_table(part)
        wanted = pa.array([True] * len(table))
        unwanted = functools.reduce(pc.and_, (pc.equal(table[name], value) for name, value in columns.items()), wanted)
        rest = table.filter(pc.invert(unwanted))
        if not len(rest):
            part.unlink()
        elif len(rest) < len(table):
            unfinished = path / ".unfinished"
            with unfinished.open("wb") as file:
                pq.write_table(rest, file, compression="zstd", row_group_size=_ROW_GROUP)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, part)


def to_record(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the record that `Trajectory.from_dict` takes.

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


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table of `to_table`, for `to_record`. JSON text stays text."""
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
    """One array per list; plain lists if any value is null, with None for it. The arrays are copies, since a view would
    be read-only and keep its whole row group in memory."""
    if lists.null_count or lists.values.null_count:
        return list(lists.to_pylist())
    values = lists.values.to_numpy()
    return [values[start:end].copy() for start, end in pairwise(lists.offsets.to_pylist())]
