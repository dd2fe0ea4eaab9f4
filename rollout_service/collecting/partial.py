"""Partial groups: whether a group is data when some of its episodes have no score.

Invariant: a group with at least `min_group_size` scored trajectories is data, whole or not. Another one is withheld: it
reaches its reader like any group, marked with the reason, and is never given as data.
"""

from __future__ import annotations

from typing import Literal

from rollout_service.errors import TaskError

MinGroupSize = int | Literal["any"]
"""Fewest scored trajectories of a group that is data. `any`: every group is, also one in which all episodes failed."""


def fewest(asked: MinGroupSize | None, of_service: MinGroupSize, group_size: int) -> int:
    """Fewest scored trajectories of a collection's groups; 0: any number.

    Args:
        asked: the collection's own; None: the service's. Groups that are smaller than the service's must be whole.
    """
    chosen = of_service if asked is None else asked
    return 0 if chosen == "any" else min(chosen, group_size)


def check_fits(asked: MinGroupSize | None, group_size: int) -> None:
    """Check that a group can have so many trajectories.

    Raises:
        TaskError: it cannot.
    """
    if isinstance(asked, int) and asked > group_size:
        raise TaskError(
            f"min_group_size is {asked}, and a group has only {group_size} episodes.",
            f"Give at most group_size, which is {group_size}; with it, only whole groups are data.",
        )


def too_few(scored: int, group_size: int, fewest_scored: int) -> str:
    """Why a finished group is no data; empty: it is."""
    if scored >= fewest_scored:
        return ""
    return f"{scored} of {group_size} trajectories have a score, fewer than min_group_size, which is {fewest_scored}"
