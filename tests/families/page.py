"""Tables of docs/models.md that scripts write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_table(page: Path, name: str, header: str, rows: Sequence[str]) -> None:
    """Put the table between the page's marks `<!-- name -->` and `<!-- end of name -->`.

    Raises:
        ValueError: the page lacks a mark.
    """
    text = page.read_text(encoding="utf8")
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    table = "\n".join([header, "|" + "---|" * header.count("|", 1), *rows])
    page.write_text(f"{before}\n{table}\n{after}", encoding="utf8")
