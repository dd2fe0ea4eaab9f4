"""Tables of the user simulator's flaws: those that heuristics found, and those of τ²'s own reviewer.

Invariant: this module only formats. A rate stands beside its 95% interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from rollout_service.cli.plain_text import plain
from rollout_service.record.flaw_counts import FlawCounts, worst
from rollout_service.record.statistics import Summary

_MOST_TASKS = 10
"""Most tasks that are shown: those in which the user is most surely at fault."""


def print_flaws(console: Console, summary: Summary) -> None:
    """Print how often the user simulator was at fault, in all and by task, if it ever was."""
    _print(console, "User simulator, by heuristics", summary.user_flaws, summary.user_flaws_by_task)
    _print(console, "User simulator, by τ²'s reviewer", summary.user_reviews, summary.user_reviews_by_task)
    if summary.failed_reviews:
        console.print(f"Not reviewed, because the reviewer failed: {summary.failed_reviews} episodes.")


def _print(console: Console, title: str, total: FlawCounts, by_task: Mapping[str, FlawCounts]) -> None:
    if not total.flawed:
        return
    table = Table("flaw", "episodes", "rate", "95% interval", title=title)
    for name, cells in rates(total):
        table.add_row(name, *cells)
    console.print(table)
    tasks = Table("task", "any flaw", "rate", "95% interval", "most often", title=f"{title}: tasks")
    for task, counts in worst(by_task, _MOST_TASKS).items():
        (_, cells), (most, _), *_ = rates(counts)
        named = plain(task)
        named.overflow = "fold"
        tasks.add_row(named, *cells, most)
    console.print(tasks)


def rates(counts: FlawCounts | Mapping[str, Any]) -> Iterable[tuple[str, tuple[str, str, str]]]:
    """Name, share of the episodes, rate and interval, as text: first of `any` flaw, then of each, the most frequent
    first.

    Args:
        counts: or what `FlawCounts.to_dict` gave.
    """
    numbers = counts.to_dict() if isinstance(counts, FlawCounts) else counts
    for name, flaw in numbers["flaws"].items():
        interval = "{:.3f} to {:.3f}".format(*flaw["interval"])
        yield name, (f"{flaw['episodes']} of {numbers['episodes']}", f"{flaw['rate']:.3f}", interval)
