"""Blocks: lines of JSON, packed so that a page can hold many and unpack few.

Invariant: a block is an element of plain text whose content is base64 of gzip of ASCII lines, so nothing in a
trajectory can end the element or be read as markup.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Callable
from typing import Any

_BLOCK_BYTES = 400_000
"""Bytes of a full block's lines. A browser unpacks it in a few milliseconds."""

_INEXACT = re.compile(r"NaN|Infinity|(?<![\d.])\d{16}")
"""What shows that a number may not survive in JavaScript. It also finds harmless digits, which costs time only."""

_LARGEST_EXACT = 2**53 - 1
"""JavaScript's numbers have no larger integer of which each neighbour is one, too."""


def to_line(value: Any) -> str:
    """JSON of a value in ASCII on one line. Numbers that JavaScript cannot hold exactly become text."""
    line = json.dumps(value, separators=(",", ":"))
    return json.dumps(_exact(value), separators=(",", ":")) if _INEXACT.search(line) else line


def _exact(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST_EXACT:
        return str(value)
    return value


def packed(name: str, lines: list[str]) -> str:
    """The element that holds these lines. Its length is in an attribute, so that the page can tell a block that is
    still being read from a whole one."""
    content = base64.b64encode(gzip.compress("\n".join(lines).encode("ascii"), 6, mtime=0)).decode()
    return f'<script type="text/plain" id="{name}" data-length="{len(content)}">{content}</script>\n'


class BlockWriter:
    """Gathers lines of several kinds, each kind in blocks of its own."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """
        Args:
            write: takes each finished element.
        """
        self._write = write
        self._open: dict[str, tuple[int, list[str], int]] = {}
        self._begun = 0

    def add(self, kind: str, line: str) -> tuple[int, int]:
        """Add a line; returns the number of its block and its number there. Block 0 is named `block-0`, and so on."""
        block, lines, size = self._open.get(kind) or self._begin()
        lines.append(line)
        self._open[kind] = block, lines, size + len(line)
        if size + len(line) >= _BLOCK_BYTES:
            self._end(kind)
        return block, len(lines) - 1

    def close(self) -> None:
        """Write the blocks that are not full."""
        for kind in list(self._open):
            self._end(kind)

    def _begin(self) -> tuple[int, list[str], int]:
        self._begun += 1
        return self._begun - 1, [], 0

    def _end(self, kind: str) -> None:
        block, lines, _ = self._open.pop(kind)
        self._write(packed(f"block-{block}", lines))
