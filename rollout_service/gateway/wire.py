"""The form of groups on their way over HTTP: NDJSON, and Arrow's stream format with the schema of Parquet files.

Invariant: both forms hold the same trajectories with nothing lost, and end with a mark that says how it goes on. What
ends without the mark was cut.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

import rollout_service.errors as errors
from rollout_service.errors import RolloutError, ServiceError
from rollout_service.gateway.delivery import CursorError, Missing, Taken
from rollout_service.record.encoding import to_json
from rollout_service.record.parquet import SCHEMA, to_record, to_rows, to_table
from rollout_service.record.trajectory import Trajectory

NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"

_GROUP, _WITHHELD, _DROPPED, _END = b"group", b"withheld", b"dropped", b"end"
"""Keys in the metadata of a record batch: the number of the group that it is, why it is no data and how many groups a
filter dropped before it, or the mark at the end, as JSON."""


class Numbered(NamedTuple):
    """A group as it came over the wire."""

    number: int
    trajectories: list[Trajectory]
    withheld: str = ""
    """As in `Group`."""
    dropped: int = 0
    """As in `Group`."""


@dataclass(frozen=True, slots=True)
class End:
    """The mark at the end."""

    state: Literal["open", "ended", "failed"]
    """`open`: there may be more groups, ask again. `ended`: that was the last one. `failed`: see `error`."""
    error: dict[str, str] | None = None
    """As `of_error` makes it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"state": self.state} if self.error is None else {"state": self.state, "error": self.error}


class Writer(Protocol):
    """Writes groups in one form."""

    media_type: str

    def group(self, number: int, trajectories: Sequence[Trajectory], withheld: str = "", dropped: int = 0) -> bytes:
        """The bytes of a group. `withheld` and `dropped` are as in `Group`."""
        ...

    def end(self, end: End) -> bytes:
        """The bytes of the mark."""
        ...


class NdjsonWriter:
    """A line for each group: `{"group": 1, "trajectories": […]}`, then one such as `{"state": "ended"}`. A group that
    is no data has the reason, too: `"withheld": "…"`. `"dropped": 2`: a filter had dropped two groups before it."""

    media_type = NDJSON

    def group(self, number: int, trajectories: Sequence[Trajectory], withheld: str = "", dropped: int = 0) -> bytes:
        """The group's line."""
        records = [trajectory.to_dict() for trajectory in trajectories]
        marks = {"withheld": withheld, "dropped": dropped}
        said = {name: mark for name, mark in marks.items() if mark}
        return to_json({"group": number, **said, "trajectories": records}) + b"\n"

    def end(self, end: End) -> bytes:
        """The last line."""
        return to_json(end.to_dict()) + b"\n"


class ArrowWriter:
    """A record batch for each group, a row for each trajectory, then an empty one for the mark."""

    media_type = ARROW

    def __init__(self) -> None:
        self._sink = io.BytesIO()
        self._stream = pa.ipc.new_stream(self._sink, SCHEMA)

    def group(self, number: int, trajectories: Sequence[Trajectory], withheld: str = "", dropped: int = 0) -> bytes:
        """The group's record batch."""
        (batch,) = to_table(trajectories).combine_chunks().to_batches()
        said = {_GROUP: str(number), _WITHHELD: withheld, _DROPPED: str(dropped)}
        return self._written(batch, {name: text.encode() for name, text in said.items()})

    def end(self, end: End) -> bytes:
        """The empty record batch, and the stream's own end."""
        written = self._written(pa.RecordBatch.from_pylist([], SCHEMA), {_END: json.dumps(end.to_dict()).encode()})
        self._stream.close()
        return written + self._taken()

    def _written(self, batch: pa.RecordBatch, metadata: dict[bytes, bytes]) -> bytes:
        self._stream.write_batch(batch, custom_metadata=metadata)
        return self._taken()

    def _taken(self) -> bytes:
        taken = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return taken


def read_arrow(body: bytes) -> tuple[list[Numbered], End]:
    """What an `ArrowWriter` wrote: numbered groups, and the mark at the end.

    Raises:
        ValueError: it was cut, or is something else.
    """
    groups: list[Numbered] = []
    try:
        with pa.ipc.open_stream(body) as stream:
            while True:
                batch, metadata = stream.read_next_batch_with_custom_metadata()
                if _END in metadata:
                    return groups, End(**json.loads(metadata[_END]))
                rows = to_rows(pa.Table.from_batches([batch]))
                trajectories = [Trajectory.from_dict(to_record(row)) for row in rows]
                withheld = metadata.get(_WITHHELD, b"").decode()
                dropped = int(metadata.get(_DROPPED, b"0"))
                groups.append(Numbered(int(metadata[_GROUP]), trajectories, withheld, dropped))
    except (StopIteration, pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise ValueError(f"the groups were cut on their way: {error}") from error


_OWN: dict[str, type[RolloutError]] = {"CursorError": CursorError, "Missing": Missing, "Taken": Taken}


def of_error(error: RolloutError) -> dict[str, str]:
    """An error of ours as JSON values."""
    return {"type": type(error).__name__, "problem": error.problem, "remedy": error.remedy}


def to_error(content: Any) -> RolloutError:
    """The error of `of_error`, of its own class."""
    if not isinstance(content, dict):
        return ServiceError("The gateway answered something else than an error of the service.", "See its log.")
    name = str(content.get("type"))
    kind = _OWN.get(name) or getattr(errors, name, None)
    made = kind if isinstance(kind, type) and issubclass(kind, RolloutError) else ServiceError
    return made(str(content.get("problem", "")), str(content.get("remedy", "")))
