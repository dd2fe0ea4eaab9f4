"""Confidence intervals of a share, and of a mean over tasks.

Invariant: they lie within [0, 1], and do not collapse at 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Z = 1.959963984540054
"""97.5th percentile of the normal distribution, for two-sided 95% intervals."""

_PRIOR_TASKS = 3
"""How many tasks the largest possible variance counts as, beside the tasks themselves. Where few tasks succeed, they
often seem to vary less than they do: without it 88% of intervals hold a pass^3 of 0.10 over 20 tasks, with it 94%."""


def wilson_interval(mean: float, count: float) -> tuple[float, float]:
    """95% confidence interval of a mean of `count` values that each lie in [0, 1].

    This is Wilson's score interval. Most of τ²-bench's rewards are 0 or 1, and for such values it is the usual choice
    at small counts: it stays within [0, 1] and does not collapse at a mean of 0 or 1. Fractional values vary less than
    0s and 1s with the same mean, so for them the interval is too wide rather than too narrow.

    Raises:
        ValueError: `mean` is outside [0, 1], or `count` is not positive.
    """
    if not 0.0 <= mean <= 1.0 or count < 1:
        raise ValueError(f"no interval for a mean of {mean} over {count} values: it takes a mean in [0, 1], count >= 1")
    spread = Z * Z / count
    center = (mean + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (mean * (1 - mean) + spread / 4)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def interval_over_tasks(values: npt.ArrayLike, strata: Sequence[str]) -> tuple[float, float]:
    """95% confidence interval of a mean over tasks, each of which has a value in [0, 1].

    It is Wilson's interval for the effective number of tasks: for as many independent 0s and 1s as it takes to give a
    mean that is as sure (Korn and Graubard 1998, "Confidence Intervals for Proportions with Small Expected Number of
    Positive Counts Estimated from Survey Data"). The task is the unit, so trials of one task are never taken for
    independent. The variance is that within the strata, whose shares are as they are.

    Args:
        values: float64[tasks].
        strata: the stratum of each task, such as its domain.

    Raises:
        ValueError: there is no task, or the mean is outside [0, 1].
    """
    table, labels = np.asarray(values, np.float64), np.asarray(strata)
    if not len(table):
        raise ValueError("there is no interval over no task")
    mean = float(table.mean())
    largest = mean * (1 - mean)
    if largest <= 0:
        return wilson_interval(mean, len(table))
    of_sum = 0.0  # the variance of the sum over tasks
    for label in np.unique(labels):
        own = table[labels == label]
        squares = float(np.square(own - own.mean()).sum())
        of_sum += len(own) * (squares + _PRIOR_TASKS * largest) / (len(own) - 1 + _PRIOR_TASKS)
    return wilson_interval(mean, max(1.0, largest * len(table) ** 2 / of_sum))
