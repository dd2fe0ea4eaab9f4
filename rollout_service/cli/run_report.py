"""Tables for people in a terminal: pass^k, what a run's trajectories show, and two runs compared.

Invariant: this module only prints. The text of the tables comes from `rollout_service.report.tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from rollout_service.cli.plain_text import plain
from rollout_service.collecting.evaluating import OFFICIAL
from rollout_service.report.tables import Table

_LEAST_NAME = 24
"""Columns of the terminal that a row's name keeps beside the numbers, however narrow it is."""


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables with the notes below them."""
    console = Console()
    for table in tables:
        if table.rows:
            title = plain(table.title)
            title.stylize("italic")
            console.print(title, soft_wrap=True)
            rows = [list(map(plain, row)) for row in table.rows]
            drawn = RichTable(*_columns(table.columns, rows, console.width))
            for row in rows:
                drawn.add_row(*row)
            console.print(drawn)
        for note in table.notes:
            console.print(plain(note), soft_wrap=True)


def _columns(columns: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> list[Column]:
    """The columns, in a terminal of this width. Names of rows that leave the numbers no room are broken, and never cut:
    some tasks of telecom have names of more than 100 letters."""
    first, *titles = map(plain, columns)
    names, *others = zip(*rows, strict=True)
    longest = max(first.cell_len, *(name.cell_len for name in names))
    cells = [max(cell.cell_len for cell in each) for each in others]
    needed = [max(cell, *map(cell_len, title.plain.split() or [""])) for cell, title in zip(cells, titles, strict=True)]
    between = 3 * len(needed) + 4
    if longest + sum(max(cell, title.cell_len) for cell, title in zip(cells, titles, strict=True)) + between <= width:
        return [Column(first, no_wrap=True), *(Column(title, overflow="fold") for title in titles)]
    room = width - sum(needed) - between
    name = Column(first, overflow="fold", width=min(longest, max(room, _LEAST_NAME)))
    if room < _LEAST_NAME:
        return [name, *(Column(title, overflow="fold") for title in titles)]
    return [name, *(Column(title, width=least) for title, least in zip(titles, needed, strict=True))]


def print_conditions(conditions: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Print by which limits episodes ended, and which of the configuration's own, for training, did not hold.

    Args:
        conditions: of an `Evaluation`.
        training: the configuration's values by the same names.
    """
    names = {name: f"limits.{name}" for name in OFFICIAL} | {"response_length": "policy.response_length"}
    if conditions["official"]:
        text = "Played in τ²-bench's official conditions: max_steps 200, max_errors 10, and any number of turns."
    else:
        parts = [
            f"{names[name]} is {conditions[name]} instead of {'no limit' if wanted is None else wanted}"
            for name, wanted in OFFICIAL.items()
            if conditions[name] != wanted
        ]
        text = f"These are not τ²-bench's official conditions: {', '.join(parts)}."
    off = [f"{names[name]}={training[name]}" for name in OFFICIAL if training[name] not in (None, conditions[name])]
    if off:
        text += f" The limits of training differ: {', '.join(off)}."
    Console().print(Text(text), soft_wrap=True)
