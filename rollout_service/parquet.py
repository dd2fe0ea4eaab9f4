"""The Parquet form of trajectories: a directory of parts, and the columns of a part.

Invariant: a part is whole or has no name that a reader sees, and what is read from it equals what was written. The
arrays go in and out as flat buffers, never token by token; a row has the form of `Trajectory.to_dict` otherwise.

What the JSONL form does in the same way (`check_version`, `unstorable`, `to_json`) stands here too, because
`rollout_service.storage`, which has that form, imports this module.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain, pairwise
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
        *_columns(pa.string(), " ".join(_JSON)),
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
    row = replace(trajectory, segments=[]).to_dict()
    row |= {column: row["task"][name] for name, column in _TASK.items()}
    row |= {name: None if row[name] is None else to_json(row[name]) for name in _JSON}
    row["provenance"]["sampling"] = to_json(row["provenance"]["sampling"])
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
            check_version((file.schema_arrow.metadata or {}).get(VERSION_KEY.encode(), b"").decode(), str(part))
            yield file
    except (OSError, KeyError, TypeError, ValueError) as error:  # pyarrow's own errors are among them
        raise StorageError(f"{part} is damaged: {error}.", "Move it away; the other parts are whole.") from error


def parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each trajectory of a directory or part stands, and what `Trajectory.from_dict` takes for it."""
    for part in _parts(path):
        with _open_part(part) as file:
            groups = (_to_records(file.read_row_group(group)) for group in range(file.num_row_groups))
            for row, record in enumerate(chain.from_iterable(groups)):
                yield f"{part}, row {row}", record


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
        "Give its fields the types that rollout_service.trajectory names, and plain JSON values inside.",
    )


def to_json(value: object) -> bytes:
    """JSON as UTF-8; as ASCII where a lone surrogate rules UTF-8 out."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
