"""Bootstrap: 95% confidence intervals of means over tasks, such as the mean difference of two runs.

Invariant: tasks are drawn with replacement, each with all its trials, so trials of one task are never taken for
independent. The same numbers give the same interval: the draws have a fixed seed.

The intervals are BCa (bias-corrected and accelerated; Efron 1987, "Better Bootstrap Confidence Intervals"). Where
values are skewed, plain percentile intervals hold the truth too rarely: 82% of the time for a pass^3 of 0.05 over 40
tasks, where BCa has 89%. A mean in [0, 1] has a better one, see `rollout_service.record.interval`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rollout_service.record.interval import Z

DRAWS = 2000
"""Draws of all tasks."""

FEWEST = 10
"""With fewer tasks their spread says too little about others, and the interval would be far too narrow."""

_SEED = 20240613
_NORMAL = NormalDist()
_COLUMNS = 512
"""Columns that are worked on at once, which bounds the memory."""


def intervals(values: npt.ArrayLike, strata: Sequence[str] | None = None) -> npt.NDArray[np.float64]:
    """The interval of each column's mean.

    Args:
        values: float64[tasks, columns]: a number of each task in each column.
        strata: the stratum of each task, such as its domain. Tasks are drawn within their stratum, so the share of each
            stratum is as it is. Where one has fewer than `FEWEST` tasks, they are drawn from all: the spread of so few
            is too small, and the interval would be too narrow. None: there is one.

    Returns:
        float64[columns, 2]: lower and upper end. Both are the value itself where all tasks of each stratum agree.

    Raises:
        ValueError: `values` is no table, or has no row.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"values has shape {table.shape}: it takes a table with a row for each task")
    labels = [""] * len(table) if strata is None else list(strata)
    if min(Counter(labels).values()) < FEWEST:
        labels = [""] * len(table)
    sizes = [count for _, count in sorted(Counter(labels).items())]
    # A task's draws go by its place, so its place must not depend on which task was done first.
    order = sorted(range(len(table)), key=lambda row: (labels[row], *table[row]))
    parts = [_of(table[order, start : start + _COLUMNS], sizes) for start in range(0, table.shape[1], _COLUMNS)]
    return np.concatenate(parts) if parts else np.empty((0, 2))


def _of(table: npt.NDArray[np.float64], sizes: Sequence[int]) -> npt.NDArray[np.float64]:
    """The intervals of a table whose rows stand stratum by stratum, in strata of these sizes."""
    draws = np.concatenate([_draws(size, number) for number, size in enumerate(sizes)], axis=1)
    means = np.sort(draws @ table / len(table), axis=0)
    mean = table.mean(axis=0)
    starts = np.cumsum([0, *sizes[:-1]])
    centers = np.add.reduceat(table, starts, axis=0) / np.asarray(sizes)[:, None]
    influence = table - np.repeat(centers, sizes, axis=0)
    spread = np.square(influence).sum(axis=0)
    acceleration = np.power(influence, 3).sum(axis=0) / np.maximum(6 * spread**1.5, 1e-300)
    tiny = 1e-12
    below = ((means < mean - tiny).sum(axis=0) + (means <= mean + tiny).sum(axis=0)) / (2 * len(means))
    found = np.empty((table.shape[1], 2))
    for column, share in enumerate(below):
        if spread[column] <= tiny:
            found[column] = mean[column]
            continue
        bias = _NORMAL.inv_cdf(min(max(share, 0.5 / len(means)), 1 - 0.5 / len(means)))
        for end, z in enumerate((bias - Z, bias + Z)):
            level = _NORMAL.cdf(bias + z / max(1 - acceleration[column] * z, 1e-9))
            found[column, end] = np.interp(level * (len(means) - 1), np.arange(len(means)), means[:, column])
    found[:, 0] = np.minimum(found[:, 0], mean)
    found[:, 1] = np.maximum(found[:, 1], mean)
    return found


@functools.lru_cache(maxsize=8)
def _draws(tasks: int, stratum: int) -> npt.NDArray[np.float32]:
    """float32[DRAWS, tasks]: how often each task is drawn, in each draw of as many as there are."""
    random = np.random.default_rng([_SEED, stratum, tasks])
    return random.multinomial(tasks, np.full(tasks, 1 / tasks), DRAWS).astype(np.float32)
