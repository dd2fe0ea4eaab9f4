"""Confidence interval of a share.

Invariant: it lies within [0, 1], and it does not collapse at 0 or 1.
"""

from __future__ import annotations

import math

Z = 1.959963984540054
"""97.5th percentile of the normal distribution, for two-sided 95% intervals."""


def wilson_interval(mean: float, count: int) -> tuple[float, float]:
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
