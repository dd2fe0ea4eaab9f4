"""Tables for people: the results of a collection, an audit and an examination.

Invariant: this module only formats. Every number comes from elsewhere.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout_service.audit.verify import Violation
from rollout_service.cli.finding import Finding
from rollout_service.cli.flaw_report import print_flaws
from rollout_service.cli.plain_text import plain
from rollout_service.errors import FaultKind
from rollout_service.record.cost import estimate
from rollout_service.record.statistics import Summary
from rollout_service.report.tables import cached_share, counted, time_shares
from rollout_service.tape.consumption import Consumption


def print_summary(
    summary: Summary, seconds: float | None, *, where: Path | None = None, limit: str = "", is_replayed: bool = False
) -> None:
    """Print the closing tables of a collection: rewards and outcomes by domain, then the totals, then for each kind of
    fault the first one's text and the remedy.

    Args:
        seconds: wall time of the collection; None: not known.
        where: file in which the trajectories were stored, if any.
        limit: what ended the collection early, if anything did.
        is_replayed: whether all answers of user simulators and judges came from a tape.
    """
    console, numbers = Console(), summary.to_dict()
    table = Table("domain", "episodes", "scored", "reward", "95% interval", "outcomes", title="Episodes")
    for name, domain in numbers["domains"].items():
        reward = "–" if domain["mean_reward"] is None else f"{domain['mean_reward']:.3f}"
        interval = "–" if domain["interval"] is None else "{:.3f} to {:.3f}".format(*domain["interval"])
        table.add_row(
            plain(name), str(domain["episodes"]), str(domain["scored"]), reward, interval, counted(domain["outcomes"])
        )
    console.print(table)
    totals = Table(show_header=False, title="Totals")
    for name, value in (*_totals(summary, seconds), *_costs(summary)):
        totals.add_row(name, plain(value))  # telecom's ids hold what rich takes for markup
    if is_replayed:
        totals.add_row("spent", "nothing: the answers came from the tape, and the costs are those of its recording")
    if limit:
        totals.add_row("ended early", Text(limit))
    if where is not None:
        totals.add_row("stored in", Text(str(where)))
    console.print(totals)
    for kind, fault in sorted(numbers["faults"].items(), key=lambda item: -item[1]["episodes"]):
        text = f"{fault['episodes']} aborted by {kind}, the first with: {fault['first']} {FaultKind(kind).remedy}"
        console.print(plain(" ".join(text.split())), soft_wrap=True)
    print_flaws(console, summary)
    if poison := numbers["poison_tasks"]:
        text = f"Quarantined, because every attempt lost its environment actor: {counted(poison)}."
        console.print(plain(f"{text} Leave them out with tasks.ids."), soft_wrap=True)


def _totals(summary: Summary, seconds: float | None) -> Iterable[tuple[str, str]]:
    """Names and values of the totals."""
    if seconds is not None:
        yield "wall time", f"{seconds:.1f} s"
        yield "rate", f"{summary.episodes / max(seconds, 1e-9) * 60:.1f} episodes/min"
    yield "ended by", counted(summary.termination_reasons)
    yield "turns", f"{summary.turns} ({summary.malformed_calls} malformed tool calls)"
    count = summary.unknown_tokens
    unknown = f", {count:,} of them no token of the tokenizer's" if count else ""
    yield "policy tokens", f"{summary.policy_tokens:,} sampled{unknown}"
    yield "prompt tokens", f"{summary.prompt_tokens:,} sent, {cached_share(summary)}"
    yield "episodes' time", time_shares(summary.timing)
    if summary.retries:
        yield "attempts made again", str(summary.retries)
    if summary.faults:
        yield "aborted by", counted(summary.faults)


def _costs(summary: Summary) -> Iterable[tuple[str, str]]:
    """What user simulators, judges and reviewers cost: each, together, and of the cheapest and the dearest task."""
    yield "user simulators", _usd(summary.user_cost_usd)
    if summary.judge_cost_usd != 0:
        yield "judges", _usd(summary.judge_cost_usd)
    if summary.review_cost_usd != 0:
        yield "user simulators' reviewers", _usd(summary.review_cost_usd)
    if summary.cost.usd == 0:
        return
    yield "cost", str(summary.cost)
    means = [(cost.per_episode, task) for task, cost in summary.task_costs.items()]
    known = sorted((mean, task) for mean, task in means if mean is not None)
    if len(known) > 1:
        ends = (f"${mean:.4f} ({task})" for mean, task in (known[0], known[-1]))
        yield "an episode of a task", " to ".join(ends)


def _usd(cost: float | None) -> str:
    return "not known" if cost is None else f"${cost:.4f}"


def print_estimate(seen: Sequence[Consumption], episodes: int, source: str) -> None:
    """Print what so many episodes will cost, judged by those seen.

    Args:
        seen: at least one; the cost of each is known.
        source: where they come from.
    """
    costs = [each.usd for each in seen if each.usd is not None]
    tasks: dict[str, list[float]] = {}
    for each in seen:
        tasks.setdefault(f"{each.domain}/{each.task_id}", []).append(each.usd or 0.0)
    means = sorted((statistics.fmean(each), task) for task, each in tasks.items())
    found = estimate(costs, episodes)
    table = Table(show_header=False, title=f"Cost of {episodes:,} episodes")
    table.add_row("judged by", f"{len(seen)} episodes of {len(tasks)} tasks, {source}")
    prompt, completion = (sum(getattr(each, f"{kind}_tokens") for each in seen) for kind in ("prompt", "completion"))
    table.add_row("tokens of an episode", f"{prompt / len(seen):,.0f} sent, {completion / len(seen):,.0f} written")
    for name in ("user", "judge", "review"):
        mean = statistics.fmean(getattr(each, f"{name}_usd") or 0.0 for each in seen)
        table.add_row(f"{name}, an episode", f"${mean:.4f}")
    table.add_row("an episode", f"${min(costs):.4f} to ${max(costs):.4f}")
    ends = " to ".join(f"${mean:.4f} ({task})" for mean, task in (means[0], means[-1]))
    table.add_row("an episode of a task", Text(ends))
    spread = "one episode says nothing about the spread"
    if found.interval is not None:
        spread = "95% interval ${:.2f} to ${:.2f}".format(*found.interval)
    table.add_row("all together", f"${found.usd:.2f} ({spread})")
    Console().print(table)


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
