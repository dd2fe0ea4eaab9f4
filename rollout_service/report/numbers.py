"""Numbers: counts over some episodes of a run: all of them, a domain's or a task's.

Invariant: it holds counts and sums, and no trajectory. What an episode does not tell is in no share: a share says of
how many episodes or checks it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rollout_service.record.cost import Cost
from rollout_service.record.evaluation import is_solved
from rollout_service.record.flaw_counts import FlawCounts
from rollout_service.record.trajectory import Timing, Trajectory
from rollout_service.report.facts import CallState, Check, Facts, GoldState


@dataclass(slots=True)
class Share:
    """How many of some checks were met."""

    met: int = 0
    of: int = 0

    def add(self, checks: Iterable[bool]) -> None:
        """Count checks."""
        for met in checks:
            self.met += met
            self.of += 1

    @property
    def rate(self) -> float | None:
        """None: there is no check."""
        return self.met / self.of if self.of else None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {"met": self.met, "of": self.of, "rate": self.rate}

    def __str__(self) -> str:
        return "–" if not self.of else f"{self.met} of {self.of} ({self.met / self.of:.1%})"


@dataclass(slots=True)
class Numbers:
    """What some episodes came to."""

    episodes: int = 0
    scored: int = 0
    """Episodes with a reward that says something about the policy."""
    solved: int = 0
    """Those that τ²-bench counts as a success."""
    reward_sum: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    """The policy's tool calls by `CallState`."""
    gold: Counter[str] = field(default_factory=Counter)
    """Actions that the tasks want of the policy, by `GoldState`, in the episodes in which τ² checked them."""
    user_gold: Counter[str] = field(default_factory=Counter)
    """The same of the user simulator."""
    communicated: Share = field(default_factory=Share)
    """Facts that the policy was to tell the user."""
    database: Share = field(default_factory=Share)
    """Episodes whose databases are as the task wants them in the end, of those in which τ² checked."""
    assertions: Share = field(default_factory=Share)
    """Assertions on the environment's end state."""
    judged: Share = field(default_factory=Share)
    """Assertions that a judge decided."""
    user_flaws: FlawCounts = field(default_factory=FlawCounts)
    """What heuristics found wrong with the user simulator."""
    user_reviews: FlawCounts = field(default_factory=FlawCounts)
    """What τ²'s own reviewer found wrong with it, in the episodes that were reviewed."""
    user_requests: int = 0
    user_failed_requests: int = 0
    """Requests of the user simulator that failed and were sent again."""
    user_tokens: int = 0
    """Tokens of the user simulator, sent and written."""
    turns: int = 0
    policy_tokens: int = 0
    """Tokens that the policy sampled."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    timing: Timing = field(default_factory=Timing)
    """Seconds, summed over episodes."""
    cost: Cost = field(default_factory=Cost)
    """US dollars of user simulators and judges."""

    def add(self, trajectory: Trajectory, facts: Facts) -> None:
        """Count one episode, of which these are the facts."""
        self.episodes += 1
        self.outcomes[str(trajectory.outcome)] += 1
        if trajectory.is_scored and trajectory.reward is not None:
            self.scored += 1
            self.solved += is_solved(trajectory.reward)
            self.reward_sum += trajectory.reward
        self._add_facts(facts)
        self.user_flaws.add(trajectory.user_flaws)
        self.user_reviews.add(None if trajectory.user_review is None else trajectory.user_review.found)
        usage = trajectory.user_usage
        self.user_requests += usage.requests
        self.user_failed_requests += usage.failed_requests
        self.user_tokens += usage.prompt_tokens + usage.completion_tokens
        self.turns += len(trajectory.turns)
        self.policy_tokens += trajectory.policy_token_count
        self.prompt_tokens += trajectory.prompt_token_count
        self.cached_tokens += trajectory.cached_token_count
        self.timing.add(trajectory.timing)
        self.cost.add(trajectory.cost_usd)

    def _add_facts(self, facts: Facts) -> None:
        self.calls.update(str(call.state) for call in facts.calls)
        self.gold.update(str(action.state) for action in facts.gold_of("assistant"))
        self.user_gold.update(str(action.state) for action in facts.gold_of("user"))
        self.communicated.add(_met(facts.communicated))
        self.database.add([] if facts.database is None else [facts.database])
        self.assertions.add(_met(facts.assertions))
        self.judged.add(_met(facts.judged))

    @property
    def mean_reward(self) -> float | None:
        """Mean over scored episodes. None: there is none."""
        return self.reward_sum / self.scored if self.scored else None

    @property
    def valid_calls(self) -> Share:
        """Calls that are well formed and that the environment carried out, of all that were made."""
        return Share(self.calls[CallState.VALID], self.calls.total())

    @property
    def gold_matched(self) -> Share:
        """Actions that the tasks want of the policy, and that it made with the right arguments."""
        return Share(self.gold[GoldState.MATCHED], self.gold.total())

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        plain = ["episodes", "scored", "solved", "turns", "policy_tokens", "prompt_tokens", "cached_tokens"]
        plain += ["user_tokens", "user_requests", "user_failed_requests"]
        shares = ("communicated", "database", "assertions", "judged")
        return (
            {name: getattr(self, name) for name in plain}
            | {name: getattr(self, name).to_dict() for name in shares}
            | {
                "mean_reward": self.mean_reward,
                "outcomes": dict(self.outcomes),
                "calls": {"made": self.calls.total()} | {state: self.calls[state] for state in CallState},
                "gold_actions": {"wanted": self.gold.total()} | {state: self.gold[state] for state in GoldState},
                "user_gold_actions": {"wanted": self.user_gold.total()}
                | {state: self.user_gold[state] for state in GoldState},
                "user_flaws": self.user_flaws.to_dict(),
                "user_reviews": self.user_reviews.to_dict(),
                "timing": asdict(self.timing),
                "cost": self.cost.to_dict(),
            }
        )


def _met(checks: tuple[Check, ...] | None) -> list[bool]:
    return [check.met for check in checks or ()]
