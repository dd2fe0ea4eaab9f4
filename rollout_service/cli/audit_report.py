"""Tables for people: an audit of tasks.

Invariant: this module only formats. Every number comes from `rollout_service.audit.task_audit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout_service.audit.task_audit import TaskAudit


def print_audits(audits: Iterable[TaskAudit], report: Mapping[str, Any]) -> None:
    """Print a row for each task, the counts by domain, and the tasks that reward doing nothing."""
    console = Console()
    rows = list(audits)
    table = Table("task", "parts", "binds", "writes", "nothing", "random", "gold", title="Tasks")
    for row in rows:
        parts = ", ".join(row.parts) + (" (judge left out)" if row.judged else "")
        writes = {True: "yes", False: "no", None: "–"}[row.writes]
        rewards = map(_number, (row.nothing, row.random, row.gold))
        table.add_row(Text(f"{row.domain}/{row.task_id}"), parts, ", ".join(row.binds) or "none", writes, *rewards)
    console.print(table)
    names = ("tasks", "write", "judged", "nothing", "random", "gold", "problems")
    heads = ("tasks", "write", "judged", "nothing = 1", "random = 1", "gold = 1", "not scored")
    counts = Table("domain", *heads, "binds", title=f"{report['distribution']} {report['version']}")
    for domain, found in report["domains"].items():
        binds = "  ".join(f"{part} ({count})" for part, count in found["binds"].items())
        counts.add_row(domain, *(str(found[name]) for name in names), binds)
    console.print(counts)
    for domain in report["domains"]:
        idle = [row.task_id for row in rows if row.domain == domain and row.nothing == 1]
        if idle:
            console.print(Text(f"{domain} rewards doing nothing in {len(idle)}: {', '.join(idle)}"), soft_wrap=True)
    for row in rows:
        if row.problem:
            console.print(Text(f"{row.domain}/{row.task_id}: {row.problem}"), soft_wrap=True)


def print_differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], found: list[tuple[str, str, list[str]]]
) -> None:
    """Print what differs between two reports, `ours` first in each pair of values."""
    console = Console()
    names = [f"{each['distribution']} {each['version']}" for each in (ours, theirs)]
    table = Table("domain", "task", "differs in", title=" / ".join(names))
    for domain, task_id, differing in found:
        table.add_row(domain, Text(task_id), Text("; ".join(differing)))
    console.print(table)
    console.print(f"{len(found)} tasks differ.")


def _number(reward: float | None) -> str:
    return "–" if reward is None else f"{reward:g}"
