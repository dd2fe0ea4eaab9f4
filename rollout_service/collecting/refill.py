"""Refill: how many groups to begin where some of them will be dropped.

Invariant: these are functions of counts alone. While a group is missing and another one may begin, one that is needed
for sure is always asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

Keep = Literal["informative", "reader"]
"""Who decides whether a group is kept. `informative`: the coordinator, by the rewards. `reader`: whoever reads it."""

MOST_GROUPS_FACTOR = 10
"""Groups that begin at most, by default, for each one that is to be kept."""


def is_informative(rewards: Iterable[float | None]) -> bool:
    """Whether the rewards of a group differ, so that it says which of its episodes were better. None, a fault's, is no
    reward."""
    return len({reward for reward in rewards if reward is not None}) > 1


def keep_rate(kept: int, dropped: int) -> float:
    """The share of groups that is likely to be kept: what was observed, with one more group that was kept. So it is 1
    before the first decision, and never 0."""
    return (kept + 1) / (kept + dropped + 1)


def further_groups(missing: int, undecided: int, rate: float) -> int:
    """How many further groups should begin, beside those that are undecided.

    Of N undecided groups, `rate` × N are expected to be kept, with a standard deviation of sqrt(rate × (1 - rate) × N).
    Groups begin until that expectation, less one standard deviation, covers the missing ones. So slots idle only where
    the groups under way are likely to be enough, and what is played in vain at the end stays small.

    Args:
        missing: groups that are still to be kept.
        undecided: groups that have begun, of which it is not known whether they are kept.
        rate: as `keep_rate` gives it.
    """
    if missing <= 0:
        return 0
    spread = math.sqrt(rate * (1.0 - rate))
    root = (spread + math.sqrt(spread * spread + 4.0 * rate * missing)) / (2.0 * rate)
    return max(0, math.ceil(root * root - 1e-6) - undecided)


def most_kept(undecided: int, rate: float) -> int:
    """How many of the undecided groups may well be kept: the expectation and one standard deviation."""
    return min(undecided, math.ceil(rate * undecided + math.sqrt(rate * (1.0 - rate) * undecided) - 1e-6))
