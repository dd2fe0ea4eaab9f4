"""Delivery: the groups of one collection that are on their way to its reader.

Invariant: a group that was added goes to the reader, and goes once more after each interruption, until the reader
acknowledges it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence

import actors.lending as lending
from actors.attempt import Result

AHEAD = 16
"""Most groups that are handed out before their reader asks for them: one transaction of the journal notes them all, so
that a fast reader seldom waits for the disk."""

_SHARE_SECONDS = 0.1
"""Shortest time between two such transactions while further groups are coming. A transaction costs as much CPU time as
the entries of six groups."""


class Delivery:
    """The groups that were handed out, and the results of those that the reader does not have for good."""

    def __init__(self) -> None:
        self.given: dict[int, dict[int, Result]] = {}
        """Results of the groups that are not acknowledged, by group and episode."""
        self.acknowledged: set[int] = set()
        """Groups that the reader has for good."""
        self._due: deque[int] = deque()
        """Groups that the reader gets next: it did not ask for them yet, or its connection was interrupted."""
        self._positions: dict[int, int] = {}
        """Where the journal notes that a group was handed out."""
        self._added = -math.inf
        """When the last group was added."""

    def __len__(self) -> int:
        """Number of groups that the reader gets without a further one being added."""
        return len(self._due)

    @property
    def sharing_seconds(self) -> float:
        """How long a finished group may wait for others that share its transaction."""
        return 0.0 if self._due else max(0.0, self._added + _SHARE_SECONDS - time.monotonic())

    def add(self, number: int, results: dict[int, Result], position: int) -> None:
        """Add a group.

        Args:
            position: where the journal notes it, see `Journal.record`.
        """
        self._added = time.monotonic()
        self.given[number] = results
        self._positions[number] = position
        self._due.append(number)

    def next(self) -> int | None:
        """Number of the group that the reader gets now; None: no group is left."""
        return self._due.popleft() if self._due else None

    def position(self, number: int) -> int | None:
        """Where the journal notes this group; None: the reader has it for good."""
        return self._positions.get(number)

    def acknowledge(self, numbers: Iterable[int], again: bool) -> None:
        """Note that the reader has these groups for good.

        Args:
            again: the reader may have missed an answer: it gets once more what it has not acknowledged.
        """
        for number in numbers:
            if (results := self.given.pop(number, None)) is not None:
                lending.keep_for_a_while(results)
                del self._positions[number]
                self.acknowledged.add(number)
        self._due = deque(self.given if again else (number for number in self._due if number in self.given))

    def restore(self, acknowledged: Sequence[int]) -> None:
        """Take which groups the reader had for good when an earlier coordinator died."""
        self.acknowledged.update(acknowledged)

    def park(self) -> None:
        """Let go of the copies in memory of what is stored."""
        for results in self.given.values():
            results.update({episode: on_disk(result) for episode, result in results.items()})

    def let_go(self) -> None:
        """Forget what was handed out: nobody will ask for it again."""
        for results in self.given.values():
            lending.keep_for_a_while(results)


def on_disk(result: Result) -> Result:
    """The result without the copy of the trajectory that is in memory, where it is stored."""
    return (result[0], None) if result[0].part is not None else result
