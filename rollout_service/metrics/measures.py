"""Measures: what the metrics need of an attempt, beside what scheduling needs.

Invariant: the attempt's own numbers, as its trajectory has them. They are only counted, and never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rollout_service.metrics.meter import Meter
from rollout_service.metrics.table import PARTS

if TYPE_CHECKING:
    from rollout_service.collecting.summary import EpisodeSummary
    from rollout_service.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Measures:
    """Numbers of one attempt."""

    turn_seconds: tuple[float, ...]
    """Seconds of each turn of the policy."""
    part_seconds: tuple[float, ...]
    """Seconds of the attempt by part, in the order of `PARTS`."""
    user_requests: int
    failed_user_requests: int

    @classmethod
    def of(cls, trajectory: Trajectory) -> Measures:
        """The trajectory's numbers."""
        usage, timing = trajectory.user_usage, trajectory.timing
        return cls(
            tuple(turn.policy_seconds for turn in trajectory.turns),
            tuple(getattr(timing, f"{part}_seconds") for part in PARTS),
            usage.requests,
            usage.failed_requests,
        )


def count_attempt(meter: Meter, domain: str, summary: EpisodeSummary) -> None:
    """Count what an attempt took and consumed, whatever becomes of it."""
    amounts = {
        "sampled_tokens_total": summary.policy_tokens,
        "prompt_tokens_total": summary.prompt_tokens,
        "cached_tokens_total": summary.cached_tokens,
        "user_tokens_total": summary.user_tokens,
        "cost_usd_total": summary.cost_usd or 0.0,
        "unknown_costs_total": float(summary.cost_usd is None),
    }
    if (it := summary.measures) is not None:
        amounts |= {"user_requests_total": it.user_requests, "user_failures_total": it.failed_user_requests}
        _count_time(meter, domain, it)
    for name, amount in amounts.items():
        meter.add(name, max(0.0, amount), domain=domain)


def _count_time(meter: Meter, domain: str, it: Measures) -> None:
    turns = len(it.turn_seconds)
    meter.add("turns_total", turns, domain=domain)
    meter.observe("episode_turns", turns, domain=domain)
    for part, seconds in zip(PARTS, it.part_seconds, strict=True):
        meter.add("part_seconds_total", max(0.0, seconds), part=part)
        meter.observe("episode_seconds", seconds, part=part)
        if turns and part != "policy":
            meter.observe("turn_seconds", seconds / turns, part=part)
    for seconds in it.turn_seconds:
        meter.observe("turn_seconds", seconds, part="policy")


def count_episode(meter: Meter, domain: str, summary: EpisodeSummary, version: int) -> None:
    """Count an episode that is done.

    Args:
        version: of the weights that the trainer gave last.
    """
    meter.add("episodes_total", domain=domain, outcome=summary.outcome)
    for source, flaws in (("heuristics", summary.user_flaws), ("review", summary.user_review)):
        if flaws is not None:
            meter.add("users_examined_total", source=source)
            for flaw in (*flaws, *(["any"] if flaws else [])):
                meter.add("user_flaws_total", source=source, flaw=flaw)
    if summary.reward is not None:
        meter.observe("reward", summary.reward, domain=domain)
        meter.add("rewards_total", max(0.0, summary.reward), domain=domain)  # τ²'s rewards are from 0 to 1
    if summary.versions is not None:
        staleness = max(0, version - summary.versions[0])
        meter.observe("staleness", staleness, domain=domain)
        meter.add("versions_behind_total", staleness, domain=domain)
