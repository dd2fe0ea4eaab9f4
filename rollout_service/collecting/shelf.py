"""Shelf: a collection's finished groups, on their way to the reader.

Invariant: a group is on the shelf, or was handed out, never both. Groups that were handed out by a process that died
come before all others, as they were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable

from rollout_service.collecting.episode_state import Handout


class Shelf:
    """The finished groups of one collection that were not handed out."""

    def __init__(self) -> None:
        self.ready: deque[int] = deque()
        """Groups that wait to be taken, in order of completion."""
        self.handed_out = 0
        self.taken = 0
        """Groups that are data and were handed out since the last weight update."""
        self.withheld = 0
        """Groups that were handed out and are no data."""
        self.withheld_in_a_row = 0
        """Those of them since the last one that is data."""
        self._before: Container[int] = ()
        """Groups that a process that died had handed out."""
        self._again: deque[Handout] = deque()
        """Those of them that are handed out again, as they were."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be handed out now."""
        return not self.ready and not self._again

    @property
    def waiting(self) -> int:
        """Number of groups on the shelf."""
        return len(self.ready) + len(self._again)

    def restore(self, again: Iterable[Handout], ready: Iterable[int], over: int, before: Container[int]) -> None:
        """Take what a process that died had done.

        Args:
            again: groups that are handed out again.
            ready: finished ones that were not handed out yet.
            over: number of those that the reader has for good.
            before: all that were handed out and that the reader does not have for good.
        """
        self._before = before
        self._again.extend(again)
        self.ready.extend(ready)
        self.handed_out += over

    def acknowledge(self, groups: Iterable[int]) -> None:
        """Note that the reader has these groups. They are not handed out again."""
        over = set(groups)
        left = [handout for handout in self._again if handout.group not in over]
        self.handed_out += len(self._again) - len(left)
        self._again = deque(left)

    def take_again(self) -> Handout | None:
        """Hand out once more what a process that died had handed out; None: there is nothing."""
        if not self._again:
            return None
        self.handed_out += 1
        return self._again.popleft()

    def pick(self, age: Callable[[int], int] | None) -> int:
        """Take a ready group off the shelf: the first of the lowest age, or else the first. It is handed out with
        `hand_out`, or comes back when it is complete again."""
        group = self.ready[0] if age is None else min(self.ready, key=age)
        self.ready.remove(group)
        return group

    def hand_out(self, group: int, *, is_data: bool) -> None:
        """Count a group that was picked and goes to the reader. One that is no data is none that the trainer takes, nor
        is one that was played again because its results were lost: the trainer may have had it before."""
        self.handed_out += 1
        self.taken += is_data and group not in self._before
        self.withheld += not is_data
        self.withheld_in_a_row = 0 if is_data else self.withheld_in_a_row + 1

    def take_back(self, *, is_data: bool) -> None:
        """Count a group that was handed out as if it was not. The trainer still takes as many before the next
        update."""
        self.handed_out -= 1
        self.taken = max(0, self.taken - is_data)
        self.withheld = max(0, self.withheld - (not is_data))
