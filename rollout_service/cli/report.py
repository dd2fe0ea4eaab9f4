"""Tables for people: the results of a collection, an audit and an examination.

Invariant: this module only formats. Every number comes from elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout_service.audit.verify import Violation
from rollout_service.cli.finding import Finding
from rollout_service.errors import FaultKind
from rollout_service.record.statistics import Summary


def print_summary(summary: Summary, seconds: float, *, where: Path | None = None, limit: str = "") -> None:
    """Print the closing tables of a collection: rewards and outcomes by domain, then the totals, then for each kind of
    fault the first one's text and the remedy.

    Args:
        seconds: wall time of the collection.
        where: file in which the trajectories were stored, if any.
        limit: what ended the collection early, if anything did.
    """
    console = Console()
    table = Table("domain", "episodes", "scored", "reward", "95% interval", "outcomes", title="Episodes")
    for domain in summary.domains.values():
        reward = "–" if domain.mean_reward is None else f"{domain.mean_reward:.3f}"
        interval = "–" if domain.interval is None else "{:.3f} to {:.3f}".format(*domain.interval)
        counts = str(domain.episodes), str(domain.scored)
        table.add_row(domain.domain, *counts, reward, interval, _counts(domain.outcomes))
    console.print(table)
    totals = Table(show_header=False, title="Totals")
    for name, value in _totals(summary, seconds):
        totals.add_row(name, value)
    if limit:
        totals.add_row("ended early", limit)
    if where is not None:
        totals.add_row("stored in", str(where))
    console.print(totals)
    for kind, count in sorted(summary.faults.items(), key=lambda item: -item[1]):
        text = f"{count} aborted by {kind}, the first with: {summary.fault_texts[kind]} {FaultKind(kind).remedy}"
        console.print(Text(" ".join(text.split())), soft_wrap=True)
    if poison := +summary.poison_tasks:
        text = f"Quarantined, because every attempt lost its environment actor: {_counts(poison)}."
        console.print(Text(f"{text} Leave them out with tasks.ids."), soft_wrap=True)


def _totals(summary: Summary, seconds: float) -> Iterable[tuple[str, str]]:
    timing = summary.timing
    spent = {
        "policy": timing.policy_seconds,
        "user": timing.user_seconds,
        "environment": timing.environment_seconds,
        "evaluation": timing.evaluation_seconds,
    }
    whole = sum(spent.values()) or 1.0
    cost = "not known" if summary.user_cost_usd is None else f"${summary.user_cost_usd:.4f}"
    yield "wall time", f"{seconds:.1f} s"
    yield "rate", f"{summary.episodes / max(seconds, 1e-9) * 60:.1f} episodes/min"
    yield "ended by", _counts(summary.termination_reasons)
    yield "turns", f"{summary.turns} ({summary.malformed_calls} malformed tool calls)"
    unknown = f", {summary.unknown_tokens:,} of them no token of the tokenizer's" if summary.unknown_tokens else ""
    yield "policy tokens", f"{summary.policy_tokens:,} sampled{unknown}"
    share = summary.cached_tokens / max(summary.prompt_tokens, 1)
    yield "prompt tokens", f"{summary.prompt_tokens:,} sent, {share:.0%} of them from the prefix cache"
    yield "episodes' time", ", ".join(f"{name} {value / whole:.0%}" for name, value in spent.items())
    yield "user simulator", cost
    if summary.retries:
        yield "attempts made again", str(summary.retries)
    if summary.faults:
        yield "aborted by", _counts(summary.faults)


def print_audit(audited: int, violations: Sequence[Violation], checks: Sequence[str], show: int) -> None:
    """Print the result of an audit: one line for each check, then the first `show` violations."""
    console = Console()
    table = Table("check", "violations", title=f"{audited} trajectories")
    by_check = Counter(violation.check for violation in violations)
    for check in checks:
        table.add_row(check, str(by_check[check]) if by_check[check] else "none")
    console.print(table)
    for violation in violations[:show]:
        console.print(Text(str(violation)))
    if len(violations) > show:
        console.print(f"… and {len(violations) - show} more (--show)")


_MARKS = {True: Text("ok", style="green"), False: Text("fix", style="red")}


def print_findings(findings: Sequence[Finding]) -> None:
    """Print the findings of an examination."""
    table = Table("", "what", "found")
    for finding in findings:
        mark = Text("not checked") if finding.ok is None else _MARKS[finding.ok]
        table.add_row(mark, finding.what, Text(finding.text))
    Console().print(table)


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]) if count)
