"""Tables: the numbers of evaluations, runs and comparisons as text, for the terminal and for the page.

Invariant: this module only formats. A number that there is not is a dash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout_service.record.evaluation import Evaluation, PassRate
from rollout_service.record.statistics import Summary
from rollout_service.record.trajectory import Timing
from rollout_service.report.comparison import Change, Comparison
from rollout_service.report.facts import CallState, GoldState
from rollout_service.report.numbers import Numbers, Share
from rollout_service.report.reading import said
from rollout_service.report.run import Run

ALL = "all"
DASH = "–"

TIME_PARTS = ("policy", "user", "environment", "evaluation")
"""What an episode's time is split into, by the names of `Timing`."""

_TASK_COLUMNS = (
    "task",
    "solved",
    "reward",
    "calls valid",
    "gold made",
    "told",
    "database",
    "flawed user",
    "tokens",
    "seconds",
    "cost",
)
"""Tokens, seconds and cost are of an episode."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under columns, and lines of text below them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def of_evaluation(evaluation: Evaluation, most: int) -> list[Table]:
    """pass^k by domain and over all, with what differences they can show; then at most `most` of the tasks with fewer
    trials."""
    rates = evaluation.domain_pass_rates
    if len(rates) > 1:
        rates = rates | {ALL: evaluation.pass_rates}
    ks = range(1, max((rate.k for each in rates.values() for rate in each), default=0) + 1)
    if not ks:
        return [Table("pass^k", (), (), ["No episode has a reward, so there is no pass^k."])]
    rows = []
    for name, each in rates.items():
        by_k = {rate.k: rate for rate in each}
        tasks = max((rate.tasks for rate in each), default=0)
        rows.append([name, str(tasks), *(_rate(by_k.get(k), tasks) for k in ks)])
    columns = ["domain", "tasks", *(f"pass^{k}" for k in ks)]
    found = [Table("pass^k, with 95% intervals over tasks", columns, rows, list(_shown_differences(evaluation)))]
    return found + _fewer(evaluation, most)


def _rate(rate: PassRate | None, tasks: int) -> str:
    if rate is None:
        return DASH
    text = f"{rate.value:.3f} ({rate.interval[0]:.3f}–{rate.interval[1]:.3f})"
    return text if rate.tasks == tasks else f"{text}, {rate.tasks} tasks"


def _shown_differences(evaluation: Evaluation) -> Iterable[str]:
    smallest = evaluation.smallest_difference
    if smallest is None:
        return
    trials = "one trial" if smallest.most_trials == 1 else f"{smallest.most_trials} trials"
    if smallest.trials < smallest.most_trials:
        trials = f"{smallest.trials} to {trials}"
    yield (
        f"With {smallest.tasks} tasks and {trials} of each, another run's pass^1 must differ by "
        f"{100 * smallest.significant:.1f} points to mean anything (5% level), and a true difference of "
        f"{100 * smallest.detectable:.1f} points is found in 80% of comparisons."
    )
    if smallest.is_bound:
        yield "That is an upper bound: one trial does not tell how much a task's trials vary."


def _fewer(evaluation: Evaluation, most: int) -> list[Table]:
    fewer, trials = evaluation.fewer, evaluation.trials
    if not fewer:
        return []
    rows = []
    for task, scored in list(fewer.items())[:most]:
        out = f"pass^{scored + 1}" + ("" if scored + 1 == trials else f" to pass^{trials}")
        rows.append([task, str(scored), out])
    title = f"Tasks with fewer than {trials} scored trials"
    return [Table(title, ("task", "scored trials", "left out of"), rows, _more(len(fewer), most, "tasks"))]


def of_run(run: Run, most: int) -> list[Table]:
    """What the episodes show, by domain and over all, then at most `most` tasks, the least solved ones first."""
    domains = _with_all(run)
    columns = [dict(_shown(numbers)) for numbers in domains.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, DASH) for column in columns)] for name in names]
    found = [Table("What the episodes show", ["", *domains], rows)]
    if most:
        worst = sorted(run.tasks.items(), key=lambda item: item[1].solved / item[1].scored if item[1].scored else 2.0)
        found.append(
            Table(
                "Tasks, the least solved first",
                _TASK_COLUMNS,
                [[task, *_task(numbers)] for task, numbers in worst[:most]],
                _more(len(worst), most, "tasks"),
            )
        )
    return found


def _with_all(run: Run) -> dict[str, Numbers]:
    """The numbers by domain, and over all where there are several."""
    return run.domains if len(run.domains) == 1 else run.domains | {ALL: run.total}


def of_summary(run: Run) -> list[Table]:
    """Rewards and outcomes by domain, tokens, time and cost, and what aborted episodes."""
    domains = _with_all(run)
    rows = [
        [name, str(each.episodes), str(each.scored), _number(each.mean_reward, ".3f"), counted(each.outcomes)]
        for name, each in domains.items()
    ]
    total, summary = run.total, run.evaluation.summary
    totals = [
        ["ended by", counted(summary.termination_reasons)],
        ["turns", f"{total.turns:,}"],
        ["policy tokens", f"{total.policy_tokens:,}"],
        ["prompt tokens", f"{total.prompt_tokens:,}, {cached_share(total)}"],
        ["user simulators' tokens", f"{total.user_tokens:,}"],
        ["episodes' time", time_shares(total.timing)],
        ["cost", str(total.cost)],
    ]
    notes = [
        f"{count} aborted by {kind}, the first with: {summary.fault_texts[kind]}"
        for kind, count in summary.faults.items()
    ]
    return [
        Table("Episodes", ("domain", "episodes", "scored", "reward", "outcomes"), rows, notes),
        Table("Totals", ("", ""), totals),
    ]


def _shown(numbers: Numbers) -> Iterable[tuple[str, str]]:
    made = numbers.calls.total()
    yield "tool calls", f"{made:,}"
    yield "valid", str(numbers.valid_calls)
    yield "malformed", str(Share(numbers.calls[CallState.MALFORMED], made))
    yield "refused by the environment", str(Share(numbers.calls[CallState.REFUSED], made))
    yield "without an answer", str(Share(numbers.calls[CallState.UNANSWERED], made))
    yield from _gold("gold actions", numbers.gold)
    if numbers.user_gold:
        yield from _gold("user's gold actions", numbers.user_gold)
    yield "facts communicated", str(numbers.communicated)
    yield "databases right", str(numbers.database)
    if numbers.assertions.of:
        yield "assertions met", str(numbers.assertions)
    if numbers.judged.of:
        yield "assertions met, by a judge", str(numbers.judged)
    flaws = numbers.user_flaws
    yield "episodes with a flaw of the user", str(Share(flaws.flawed, flaws.episodes))
    for name, count in flaws.by_flaw.most_common():
        yield f"  {name}", str(Share(count, flaws.episodes))
    if (reviews := numbers.user_reviews).episodes:
        yield "episodes whose user τ²'s reviewer faults", str(Share(reviews.flawed, reviews.episodes))
    yield "user's requests that failed", str(Share(numbers.user_failed_requests, numbers.user_requests))


def _gold(name: str, counts: Counter[str]) -> Iterable[tuple[str, str]]:
    wanted = counts.total()
    yield f"{name} made, right arguments", str(Share(counts[GoldState.MATCHED], wanted))
    yield f"{name} made, other arguments", str(Share(counts[GoldState.WRONG_ARGUMENTS], wanted))
    yield f"{name} not made", str(Share(counts[GoldState.MISSING], wanted))


def _task(numbers: Numbers) -> tuple[str, ...]:
    return (
        f"{numbers.solved}/{numbers.scored}",
        _number(numbers.mean_reward, ".2f"),
        *(_of(share) for share in (numbers.valid_calls, numbers.gold_matched, numbers.communicated, numbers.database)),
        _of(Share(numbers.user_flaws.flawed, numbers.user_flaws.episodes)),
        f"{numbers.policy_tokens / numbers.episodes:,.0f}",
        f"{numbers.timing.episode_seconds / numbers.episodes:.1f}",
        _number(numbers.cost.per_episode, ".4f", "$"),
    )


def of_comparison(found: Comparison, most: int) -> list[Table]:
    """The paired differences, then at most `most` of the tasks that changed sides, each way."""
    rows = [
        [
            each.what,
            f"{each.baseline:.3f}",
            f"{each.run:.3f}",
            f"{each.value:+.3f}",
            "{:+.3f} to {:+.3f}".format(*each.interval) + ("" if each.is_significant else ", not significant"),
            str(each.tasks),
        ]
        for each in found.differences
    ]
    out = "1 task is" if found.left_out == 1 else f"{found.left_out} tasks are"
    notes = [f"{out} left out: not both runs have scored {'it' if found.left_out == 1 else 'them'}."]
    notes = notes if found.left_out else []
    notes += [
        f"The runs differ in {name}: {said(name, ours)} against {said(name, theirs)}."
        for name, (ours, theirs) in found.other_conditions.items()
    ]
    columns = ("", "against", "run", "difference", "95% interval", "tasks")
    tables = [Table(f"{found.run.name} against {found.baseline.name}", columns, rows, notes)]
    for run, changes in ((found.run, found.gained), (found.baseline, found.lost)):
        if changes:
            tables.append(_changes(f"Tasks that only {run.name} solves in more than half of its trials", changes, most))
    return tables


def _changes(title: str, changes: Sequence[Change], most: int) -> Table:
    rows = [
        [change.task, *(f"{solved}/{scored}" for scored, solved in (change.baseline, change.run))]
        for change in changes[:most]
    ]
    return Table(title, ("task", "against", "run"), rows, _more(len(changes), most, "tasks"))


def _number(value: float | None, form: str, before: str = "") -> str:
    return DASH if value is None else f"{before}{value:{form}}"


def _of(share: Share) -> str:
    return f"{share.met}/{share.of}" if share.of else DASH


def _more(count: int, most: int, what: str) -> list[str]:
    return [f"… and {count - most} more {what} (--json has all)"] if count > most else []


def counted(counts: Mapping[Any, int]) -> str:
    """Names with their counts, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]) if count)


def cached_share(numbers: Numbers | Summary) -> str:
    """The share of the prompt tokens that came from the prefix cache."""
    return f"{numbers.cached_tokens / max(numbers.prompt_tokens, 1):.0%} of them from the prefix cache"


def time_shares(timing: Timing) -> str:
    """How an episode's time is split."""
    whole = timing.episode_seconds or 1.0
    return ", ".join(f"{part} {getattr(timing, f'{part}_seconds') / whole:.0%}" for part in TIME_PARTS)
