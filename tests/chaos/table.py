"""The table of what schedules showed, by kind."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.chaos import history
from tests.chaos.checker import lengths, same_distribution
from tests.chaos.results import Result
from tests.chaos.run import calm_log

_COLUMNS = (
    "kind",
    "schedules",
    "faults",
    "asked",
    "delivered",
    "reported",
    "twice",
    "lost",
    "other reward",
    "other violations",
    "KS p",
    "recovery: median",
    "most",
    "pause",
    "seconds each",
)


def show(results: Iterable[Result], folder: Path) -> None:
    """Print the table.

    Args:
        folder: where the calm runs are.
    """
    by_kind: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_kind[result.schedule.kind].append(result)
    everything = [result for of_kind in by_kind.values() for result in of_kind]
    table = Table(*_COLUMNS, title="Histories that were checked")
    for kind, of_kind in by_kind.items():
        table.add_row(*_row(kind, of_kind, folder))
    if len(by_kind) > 1:
        table.add_section()
        table.add_row(*_row("all", everything, folder))
    Console(width=180).print(table)


def _row(kind: str, results: list[Result], folder: Path) -> list[str]:
    violations = [sum(result.count(name) for result in results) for name in ("twice", "lost", "reward")]
    others = sum(len(result.violations) for result in results) - sum(violations)
    recovery = [seconds for result in results for seconds in result.recovery]
    shown = [f"{statistics.median(recovery):.1f} s", f"{max(recovery):.1f} s"] if recovery else ["", ""]
    numbers = [
        len(results),
        sum(result.injected for result in results),
        sum(result.schedule.episodes for result in results),
        sum(result.delivered for result in results),
        sum(result.reported for result in results),
        *violations,
        others,
    ]
    return [
        kind,
        *(f"{number:,}" for number in numbers),
        f"{_probability(results, folder):.3f}",
        *shown,
        f"{max(result.pause for result in results):.1f} s",
        f"{statistics.mean(result.seconds for result in results):.1f}",
    ]


def _probability(results: list[Result], folder: Path) -> float:
    """Of the lengths of all that came against those of the calm runs, each as often as it was compared with."""
    calm = {path: lengths(history.read(path)) for path in {calm_log(folder, result.schedule) for result in results}}
    came = np.concatenate([np.array(result.lengths, dtype=np.int64) for result in results])
    expected = np.concatenate([calm[calm_log(folder, result.schedule)] for result in results])
    return same_distribution(came, expected)
