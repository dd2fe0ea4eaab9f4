"""Judging: a reader's own filter decides which groups it keeps.

Invariant: a group is judged before its reader is given it. What a function raises reaches its caller, and the group is
judged again when the next one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rollout_service.collecting.refill import is_informative
from rollout_service.errors import TaskError
from rollout_service.record.trajectory import Trajectory
from rollout_service.redaction import shown

Filter = Callable[[list[Trajectory]], bool]
Dropped = Callable[[list[Trajectory]], object]


class Judge:
    """The filter of one stream."""

    def __init__(self, keep: Filter, on_dropped: Dropped | None = None) -> None:
        """
        Args:
            keep: whether a group is kept.
            on_dropped: called with each group that is not.
        """
        self._keep = keep
        self._on_dropped = on_dropped

    @classmethod
    def of(cls, keep: Any, on_dropped: Any) -> Judge | None:
        """The judge of a collection that is asked for with these; None: the service decides, or every group is kept.

        Raises:
            TaskError: one of them is of no use.
        """
        if on_dropped is not None and not callable(on_dropped):
            raise TaskError(f"on_dropped is {shown(on_dropped)}.", "Give a function of a group, or leave it out.")
        if on_dropped is not None and keep is None:
            raise TaskError("on_dropped is given, but no group is dropped without keep.", "Give keep as well.")
        if callable(keep):
            return cls(keep, on_dropped)
        if keep not in (None, "informative"):
            raise TaskError(f"keep is {shown(keep)}.", 'Give "informative", or a function of a group.')
        return None if on_dropped is None else cls(informative, on_dropped)

    def keeps(self, group: list[Trajectory]) -> bool:
        """Whether the group is kept. If it is not, whoever wants it has been given it.

        Raises:
            TaskError: the filter returned neither True nor False.
        """
        verdict = self._keep(group)
        if not isinstance(verdict, (bool, np.bool_)):
            raise TaskError(f"keep returned {shown(verdict)} for a group.", "Return True or False.")
        if not verdict and self._on_dropped is not None:
            self._on_dropped(group)
        return bool(verdict)


def informative(group: list[Trajectory]) -> bool:
    """Whether the rewards of the group differ. An episode that a fault ended has no reward."""
    return is_informative(trajectory.reward for trajectory in group)


def check_judged(collection_id: str, keeps: str | None, judges: bool | None) -> None:
    """Check that a collection that is opened again is judged if its reader decides, and only then.

    Args:
        keeps: who decides, see `Keep`.
        judges: whether its reader has a `Judge`; None: that is not known.

    Raises:
        TaskError: it is not.
    """
    if keeps == "reader" and judges is False:
        text = f"Collection {collection_id} was asked for with a function, which decides what is kept."
        raise TaskError(text, "Give it again: reopen(collection_id, keep=...).")
    if keeps != "reader" and judges:
        text = f"Collection {collection_id} was asked for without a function: what it keeps is decided."
        raise TaskError(text, "Leave out keep and on_dropped.")
