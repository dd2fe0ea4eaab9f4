"""Index: what a page must know before anything is opened: the list's rows, and what was read and checked.

Invariant: it is one block, which stands before all others, so that the list is shown while the rest is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from rollout_service.viewer.blocks import packed, to_line


@dataclass(slots=True)
class FileNote:
    """What a page says of a file that it was made of."""

    name: str
    readable: int = 0
    unreadable: int = 0
    note: str = ""
    """Why it may not be whole; empty: nothing says so."""


def index_block(
    rows: Sequence[dict[str, Any]],
    files: Sequence[FileNote],
    checks: Sequence[str],
    tokenizers: Sequence[dict[str, str]],
) -> str:
    """The element of the index.

    Args:
        rows: one for each place of the files, as `episode.row` makes them.
        checks: checks of `verify` that were made.
        tokenizers: `name`, `fingerprint`, and the `problem` for which there are no texts; empty: there are.
    """
    index = {
        "files": [asdict(file) for file in files],
        "checks": list(checks),
        "tokenizers": list(tokenizers),
        "columns": _columns(rows),
    }
    return packed("index", [to_line(index)])


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows by column. A column of text holds each text once, in `values`, and its place there by row, in `at`."""
    names = dict.fromkeys(chain.from_iterable(rows))
    columns: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in values):
            distinct = {value: place for place, value in enumerate(dict.fromkeys(values))}
            columns[name] = {"values": list(distinct), "at": [distinct[value] for value in values]}
        else:
            columns[name] = values
    return columns
