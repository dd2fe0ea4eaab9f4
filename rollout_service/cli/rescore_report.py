"""Tables for people: what changed when trajectories were scored again.

Invariant: this module only formats. Every number comes from `rollout_service.audit.rescore`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout_service.audit.rescore import Rescored


def print_rescored(found: Sequence[Rescored], target: Path, show: int) -> None:
    """Print the counts by domain, the first `show` rewards that changed, the tasks that changed, and what could not be
    scored."""
    console = Console()
    table = Table(
        "domain", "trajectories", "rewards changed", "higher", "lower", "not scored", "mean", title="Rescored"
    )
    by_domain = sorted(found, key=lambda each: each.before.task.domain)
    for domain, rows in itertools.groupby(by_domain, key=lambda each: each.before.task.domain):
        each = list(rows)
        scored = [(r.before.reward, r.after.reward) for r in each if r.after and r.after.reward is not None]
        pairs = [(before, after) for before, after in scored if before is not None and after is not None]
        counts = (
            len(each),
            sum(r.reward_changed for r in each),
            sum(before < after for before, after in pairs),
            sum(before > after for before, after in pairs),
            sum(bool(r.problem) for r in each),
        )
        mean = " → ".join(f"{fmean(values):.3f}" for values in zip(*pairs, strict=True)) or "–"
        table.add_row(domain, *map(str, counts), mean)
    console.print(table)
    changed = [r for r in found if r.reward_changed]
    for r in changed[:show]:
        after = None if r.after is None else r.after.reward
        line = f"{r.before.trajectory_id} {r.before.task}: {r.before.reward:g} → {after:g}"
        console.print(Text(line), soft_wrap=True)
    if len(changed) > show:
        console.print(f"… and {len(changed) - show} more")
    tasks = dict.fromkeys(str(r.before.task) for r in found if r.task_changed)
    if tasks:
        console.print(Text(f"{len(tasks)} tasks changed since: {', '.join(tasks)}"), soft_wrap=True)
    unknown = sum(not r.before.provenance.task_hash for r in found)
    if unknown:
        console.print(f"{unknown} trajectories of older releases do not say what their task was.")
    for r in found:
        if r.problem:
            text = f"{r.before.trajectory_id} {r.before.task} is left out: {r.problem}"
            console.print(Text(text), soft_wrap=True)
    console.print(Text(f"stored in {target}"), soft_wrap=True)
