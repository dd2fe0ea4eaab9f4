"""Counts, means and intervals over trajectories.

Invariant: a `Summary` holds numbers by name, and one text for each kind of fault. It keeps no trajectory, so a stream
of any length can be summarized. An episode without a score is in no mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rollout_service.errors import POISON_TASK, ConfigError
from rollout_service.record.cost import Cost
from rollout_service.record.flaw_counts import FlawCounts
from rollout_service.record.interval import wilson_interval as wilson_interval
from rollout_service.record.trajectory import Timing, Trajectory, UserUsage


@dataclass(slots=True)
class DomainSummary:
    """What happened to the episodes of one domain."""

    domain: str
    episodes: int = 0
    scored: int = 0
    """Episodes with a reward that says something about the policy, see `Trajectory.is_scored`."""
    reward_sum: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    """Episodes by outcome."""

    @property
    def mean_reward(self) -> float | None:
        """Mean over scored episodes. None: there is none."""
        return self.reward_sum / self.scored if self.scored else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% confidence interval of the mean reward, see `wilson_interval`. None: no episode was scored.

        It assumes independent episodes. Episodes of the same task are not independent, so the interval is too narrow
        for claims about tasks that were not tried.
        """
        return wilson_interval(self.reward_sum / self.scored, self.scored) if self.scored else None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {
            "episodes": self.episodes,
            "scored": self.scored,
            "mean_reward": self.mean_reward,
            "interval": None if self.interval is None else list(self.interval),
            "outcomes": dict(self.outcomes),
        }


@dataclass(slots=True)
class Summary:
    """What happened to a set of episodes."""

    episodes: int = 0
    domains: dict[str, DomainSummary] = field(default_factory=dict)
    """By domain name, in order of first appearance."""
    termination_reasons: Counter[str] = field(default_factory=Counter)
    """Episodes by `termination_reason`."""
    faults: Counter[str] = field(default_factory=Counter)
    """Episodes that a fault stopped for good, by its kind."""
    fault_texts: dict[str, str] = field(default_factory=dict)
    """Text of the first fault of each kind."""
    poison_tasks: Counter[str] = field(default_factory=Counter)
    """Episodes that were given up because they lost their environment actor too often, by task."""
    retries: int = 0
    """Attempts that a fault stopped and that were repeated."""
    policy_tokens: int = 0
    """Tokens that the policy sampled."""
    unknown_tokens: int = 0
    """Sampled ids for which the tokenizer has no token."""
    prompt_tokens: int = 0
    """Tokens that were sent to the engine, summed over turns, cached ones included."""
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    malformed_calls: int = 0
    """Tool calls that could not be parsed."""
    turns: int = 0
    """Policy generations."""
    timing: Timing = field(default_factory=Timing)
    """Seconds, summed over episodes. More than the wall time if episodes ran in parallel."""
    user_flaws: FlawCounts = field(default_factory=FlawCounts)
    """How often the user simulator was at fault."""
    user_flaws_by_task: dict[str, FlawCounts] = field(default_factory=dict)
    """The same by task."""
    user_reviews: FlawCounts = field(default_factory=FlawCounts)
    """How often τ²'s reviewer found the user simulator at fault: tags and severities of errors."""
    user_reviews_by_task: dict[str, FlawCounts] = field(default_factory=dict)
    """The same by task."""
    failed_reviews: int = 0
    """Episodes that should have been reviewed and were not."""
    user_cost_usd: float | None = 0.0
    """US dollars of the user simulators. None: one episode's cost is not known."""
    judge_cost_usd: float | None = 0.0
    """The same of the judges."""
    review_cost_usd: float | None = 0.0
    """The same of the user simulators' reviewers."""
    cost: Cost = field(default_factory=Cost)
    """What the episodes cost, user simulators, judges and reviewers together."""
    task_costs: dict[str, Cost] = field(default_factory=dict)
    """The same by task."""

    @property
    def scored(self) -> int:
        """Episodes with a reward."""
        return sum(domain.scored for domain in self.domains.values())

    def add(self, trajectory: Trajectory) -> None:
        """Count one trajectory."""
        self.episodes += 1
        self._add_to_domain(trajectory)
        self.termination_reasons[trajectory.termination_reason] += 1
        if trajectory.fault is not None:
            kind = str(trajectory.fault.kind)
            self.faults[kind] += 1
            self.fault_texts.setdefault(kind, f"{trajectory.fault.error}: {trajectory.fault.message}")
            self.poison_tasks[str(trajectory.task)] += trajectory.fault.error == POISON_TASK
        self.retries += trajectory.attempt - 1
        self.policy_tokens += trajectory.policy_token_count
        self.unknown_tokens += trajectory.unknown_token_count
        self.prompt_tokens += trajectory.prompt_token_count
        self.cached_tokens += trajectory.cached_token_count
        self.malformed_calls += trajectory.malformed_call_count
        self.turns += len(trajectory.turns)
        self.timing.add(trajectory.timing)
        self._add_cost(trajectory)
        if trajectory.user_flaws is not None:
            self.user_flaws.add(trajectory.user_flaws)
            self.user_flaws_by_task.setdefault(str(trajectory.task), FlawCounts()).add(trajectory.user_flaws)
        if trajectory.user_review is not None:
            found = trajectory.user_review.found
            self.user_reviews.add(found)
            self.user_reviews_by_task.setdefault(str(trajectory.task), FlawCounts()).add(found)
            self.failed_reviews += found is None

    def to_dict(self) -> dict[str, Any]:
        """Every number, as JSON values by name. `faults` has the episodes and the first text of each kind."""
        numbers = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "fault_texts"}
        return numbers | {
            "scored": self.scored,
            "domains": {name: domain.to_dict() for name, domain in self.domains.items()},
            "termination_reasons": dict(self.termination_reasons),
            "faults": {kind: {"episodes": n, "first": self.fault_texts[kind]} for kind, n in self.faults.items()},
            "poison_tasks": dict(+self.poison_tasks),
            "user_flaws": self.user_flaws.to_dict(),
            "user_flaws_by_task": {task: counts.to_dict() for task, counts in self.user_flaws_by_task.items()},
            "user_reviews": self.user_reviews.to_dict(),
            "user_reviews_by_task": {task: counts.to_dict() for task, counts in self.user_reviews_by_task.items()},
            "timing": asdict(self.timing),
            "cost": self.cost.to_dict(),
            "task_costs": {task: cost.to_dict() for task, cost in self.task_costs.items()},
        }

    def _add_cost(self, trajectory: Trajectory) -> None:
        review = None if trajectory.user_review is None else trajectory.user_review.usage
        self.user_cost_usd = _added(self.user_cost_usd, trajectory.user_usage)
        self.judge_cost_usd = _added(self.judge_cost_usd, trajectory.judge_usage)
        self.review_cost_usd = _added(self.review_cost_usd, review)
        for cost in (self.cost, self.task_costs.setdefault(str(trajectory.task), Cost())):
            cost.add(trajectory.cost_usd)

    def _add_to_domain(self, trajectory: Trajectory) -> None:
        name = trajectory.task.domain
        domain = self.domains.setdefault(name, DomainSummary(name))
        domain.episodes += 1
        domain.outcomes[str(trajectory.outcome)] += 1
        if trajectory.is_scored and trajectory.reward is not None:
            domain.scored += 1
            domain.reward_sum += trajectory.reward


def _added(known: float | None, usage: UserUsage | None) -> float | None:
    """US dollars with those of one more episode. None: not known."""
    if usage is None or known is None:
        return known
    return None if usage.cost_usd is None else known + usage.cost_usd


def summarize(trajectories: Iterable[Trajectory]) -> Summary:
    """The summary of `trajectories`, which may be a generator. None of them is kept."""
    summary = Summary()
    for trajectory in trajectories:
        summary.add(trajectory)
    return summary


def task_pass_rate(counts: tuple[int, int], k: int) -> float:
    """pass^k of one task with these (trials, successes). It has at least k trials."""
    return math.comb(counts[1], k) / math.comb(counts[0], k)


def pass_hat_k(successes: Sequence[tuple[int, int]], k: int) -> float:
    """pass^k: the probability that all of k independent trials of a task succeed, averaged over tasks.

    The unbiased estimator of τ-bench (arXiv 2406.12045): the share of a task's k-subsets of trials in which every
    trial succeeded, C(c, k) / C(n, k) for c successes in n trials.

    Args:
        successes: (trials, successes) of each task.
        k: from 1 to the smallest number of trials of any task.

    Raises:
        ConfigError: there is no task, a count is impossible, or a task has fewer than k trials.
    """
    if not successes:
        raise ConfigError(f"pass^{k} of no task is not defined.", "Give (trials, successes) of at least one task.")
    if k < 1:
        raise ConfigError(f"pass^{k} is not defined.", "Choose k >= 1.")
    for task, (trials, passed) in enumerate(successes):
        if not 0 <= passed <= trials:
            raise ConfigError(f"Task {task} has {passed} successes in {trials} trials.", "Give (trials, successes).")
        if trials < k:
            raise ConfigError(
                f"pass^{k} needs {k} scored trials of every task; task {task} has {trials}.",
                f"Run more trials, or choose k <= {min(trials for trials, _ in successes)}.",
            )
    return math.fsum(task_pass_rate(counts, k) for counts in successes) / len(successes)
