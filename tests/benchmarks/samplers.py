"""How many episodes does a trainer need that keeps only groups whose rewards differ? Samplers against each other.

The policy is simulated, see `tests.support.simulated_training`: the figures show how the ratio depends on the tasks'
difficulty. They promise nothing for a model.
"""

from __future__ import annotations

from statistics import mean

from rollout_service.task_sampling.pass_rate import PassRateSampler
from rollout_service.task_sampling.uniform import UniformSampler
from tests.benchmarks.measure import Row, show
from tests.support.simulated_training import AS_ON_TAU2, Difficulty, pool, train

SEEDS = range(20)

CASES = (
    (AS_ON_TAU2, 100),
    (AS_ON_TAU2, 200),
    (AS_ON_TAU2, 400),
    (Difficulty(never=0.6, always=0.1), 200),
    (Difficulty(never=0.2, always=0.2), 200),
    (Difficulty(never=0.0, always=0.0), 200),
)
"""Difficulty of the tasks, and number of informative groups that are wanted."""

TARGET = 0.7
"""Most episodes with `pass_rate`, relative to `uniform`, for 200 groups of tasks as on τ²-bench."""


def run() -> bool:
    """Print the table. Whether the target was met."""
    return show(f"Episodes until informative groups, mean of {len(SEEDS)} seeds", [_row(*case) for case in CASES])


def _row(difficulty: Difficulty, wanted: int) -> Row:
    runs = [
        (
            train(PassRateSampler(pool(), seed=seed), seed, informative=wanted, difficulty=difficulty).episodes,
            train(UniformSampler(pool(), seed=seed), seed, informative=wanted, difficulty=difficulty).episodes,
        )
        for seed in SEEDS
    ]
    ratios = [ours / baseline for ours, baseline in runs]
    ours, baseline = (mean(column) for column in zip(*runs, strict=True))
    is_target = difficulty == AS_ON_TAU2 and wanted == 200
    return Row(
        f"{wanted} groups; passed nearly never {difficulty.never:.0%}, nearly always {difficulty.always:.0%}",
        f"{ours:,.0f}",
        f"{baseline:,.0f}",
        f"{mean(ratios):.2f} (worst {max(ratios):.2f})",
        f"<= {TARGET} each" if is_target else "",
        not is_target or max(ratios) <= TARGET,
    )
