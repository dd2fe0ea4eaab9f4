"""A part: one finished trajectory, stored in a file that outlives the process that played the episode.

Invariant: what is read back equals what was written, or is refused: whoever knows a part knows its digest.

A part is a line of JSON, which is `Trajectory.to_dict` with the length of each array in the array's place, and then the
arrays' bytes, little-endian, in the order in which the line names them. In a segment that is `packed`, the mask is
bits, and what says nothing where nothing was sampled is left out, which is most of it. A part costs a tenth of JSONL to
write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic_core

from rollout_service.errors import StorageError
from rollout_service.record.encoding import check_version, to_json
from rollout_service.record.schema import array_dtype, hints, shallow
from rollout_service.record.trajectory import SCHEMA_VERSION, TokenSegment, Trajectory

_ARRAYS = {name: dtype.newbyteorder("<") for name, hint in hints(TokenSegment).items() if (dtype := array_dtype(hint))}

_OTHERS = tuple(name for name in hints(TokenSegment) if name not in _ARRAYS)


@dataclass(frozen=True, slots=True)
class Part:
    """Where a finished trajectory lies."""

    name: str
    """The file's name in the directory of parts."""
    digest: str
    """SHA-256 of the content."""
    node: str
    """Id of the Ray node on whose disk it lies."""
    offset: int = 0
    """Bytes of the file before it."""
    size: int | None = None
    """Bytes that it has; None: the file holds nothing else."""
    of: int = 1
    """Parts that the file is to hold, if it becomes full."""


def read_part(folder: Path, part: Part) -> Trajectory:
    """The trajectory that was written.

    Raises:
        StorageError: the file is gone, or holds something else than what was written.
    """
    path = folder / part.name
    try:
        with path.open("rb") as file:
            file.seek(part.offset)
            content = file.read() if part.size is None else file.read(part.size)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}.", "Its episode has to be played again.") from error
    if hashlib.sha256(content).hexdigest() != part.digest:
        raise StorageError(f"{path} is damaged: it has another digest.", "Its episode has to be played again.")
    return _decoded(content, str(path))


def is_there(folder: Path, part: Part) -> bool:
    """Whether the part's file lies in this machine's `folder`, and is long enough."""
    try:
        return (folder / part.name).stat().st_size >= part.offset + (part.size or 0)
    except OSError:
        return False


def discard_files(folder: Path, parts: list[Part]) -> None:
    """Remove the files of these parts, as far as they lie in this machine's `folder`."""
    for part in parts:
        with contextlib.suppress(OSError):
            (folder / part.name).unlink(missing_ok=True)


def encoded(trajectory: Trajectory) -> bytes:
    """The content of the trajectory's part.

    Raises:
        TypeError: it holds a value that JSON does not have.
    """
    arrays: list[bytes] = []
    head: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **shallow(trajectory), "segments": []}
    for segment in trajectory.segments:
        plain = {name: getattr(segment, name) for name in _OTHERS}
        columns = {name: getattr(segment, name) for name in _ARRAYS}
        if _can_be_packed(segment):
            plain["packed"] = True
            columns |= _packed(segment)
        for name, dtype in _ARRAYS.items():
            plain[name] = len(columns[name])
            arrays.append(columns[name].astype(dtype, copy=False).tobytes())
        head["segments"].append(plain)
    return b"".join([_line(head), b"\n", *arrays])


def _line(head: dict[str, Any]) -> bytes:
    try:
        return pydantic_core.to_json(head)
    except pydantic_core.PydanticSerializationError:  # such as a lone surrogate
        return to_json(head)


def _can_be_packed(segment: TokenSegment) -> bool:
    """Whether the mask is of zeros and ones, and the other arrays say nothing where it is 0."""
    mask, logprobs, versions = segment.loss_mask, segment.logprobs, segment.weight_versions
    if not len(segment.token_ids) == len(mask) == len(logprobs) == len(versions):
        return False
    context = mask == 0
    return bool((mask <= 1).all() and not logprobs[context].any() and (versions[context] == -1).all())


def _packed(segment: TokenSegment) -> dict[str, np.ndarray[Any, Any]]:
    sampled = segment.loss_mask == 1
    return {
        "loss_mask": np.packbits(sampled),
        "logprobs": segment.logprobs[sampled],
        "weight_versions": segment.weight_versions[sampled],
    }


def _unpack(segment: dict[str, Any]) -> None:
    """Make the arrays of a packed segment whole again, in place."""
    size = len(segment["token_ids"])
    mask = np.unpackbits(segment["loss_mask"], count=size)
    for name, blank in (("logprobs", 0), ("weight_versions", -1)):
        whole = np.full(size, blank, segment[name].dtype)
        whole[mask == 1] = segment[name]
        segment[name] = whole
    segment["loss_mask"] = mask


def _decoded(content: bytes, where: str) -> Trajectory:
    line, _, body = content.partition(b"\n")
    record: dict[str, Any] = json.loads(line)
    check_version(record.get("schema_version"), where)
    position = 0
    for segment in record["segments"]:
        for name, dtype in _stored(segment):
            end = position + segment[name] * dtype.itemsize
            segment[name] = np.frombuffer(body[position:end], dtype).astype(dtype.newbyteorder("="))
            position = end
        if segment.pop("packed", False):
            _unpack(segment)
    return Trajectory.from_dict(record)


def _stored(segment: dict[str, Any]) -> Iterator[tuple[str, np.dtype[Any]]]:
    """The arrays of a segment in the order in which they were written."""
    return ((name, _ARRAYS[name]) for name in list(segment) if name in _ARRAYS)
