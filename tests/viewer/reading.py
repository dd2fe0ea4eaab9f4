"""Reads a page of the viewer as a browser would: its elements by an HTML parser, its blocks by gzip and JSON."""

from __future__ import annotations

import base64
import gzip
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """The scripts of a page by their ids, and its tags in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, str] = {}
        """Text of each block by its name, and that of the page's own script and style as `script` and `style`."""
        self._name: str | None = None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._name = dict(attributes).get("id") or tag
            self.contents[self._name] = ""

    def handle_endtag(self, tag: str) -> None:
        self._name = None

    def handle_data(self, data: str) -> None:
        if self._name is not None:
            self.contents[self._name] += data

    def lines(self, block: str) -> list[Any]:
        """The JSON lines of a block."""
        packed = self.contents[block]
        (length,) = (found["data-length"] for _, found in self.tags if found.get("id") == block)
        assert length == str(len(packed))
        return [json.loads(line) for line in gzip.decompress(base64.b64decode(packed)).decode("ascii").split("\n")]

    @property
    def index(self) -> dict[str, Any]:
        return dict(self.lines("index")[0])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the list."""
        columns = {
            name: column if isinstance(column, list) else [column["values"][at] for at in column["at"]]
            for name, column in self.index["columns"].items()
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def talk(self, row: dict[str, Any]) -> dict[str, Any]:
        return dict(self.lines(f"block-{row['talk']}")[row["talkLine"]])

    def tokens(self, row: dict[str, Any]) -> dict[str, Any]:
        return dict(self.lines(f"block-{row['tokenBlock']}")[row["tokenLine"]])
