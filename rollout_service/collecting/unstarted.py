"""Unstarted: the episodes of a collection that never started.

Invariant: they start in order, group by group. Those that were done before the collection are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable


class Unstarted:
    """The episodes that were never started. Their index is as in `Roster`."""

    def __init__(self, groups: int, group_size: int) -> None:
        self.groups = groups
        """Number of groups that have begun, or may begin."""
        self.next = 0
        """The first of the episodes; equal to `end`: there is none."""
        self.left = groups * group_size
        """Number of the episodes."""
        self.before: frozenset[int] = frozenset()
        """Episodes that were done before this collection."""
        self._group_size = group_size

    @property
    def end(self) -> int:
        """The index after that of the last episode."""
        return self.groups * self._group_size

    @property
    def begun(self) -> int:
        """Number of groups of which an episode has started."""
        return -(-self.next // self._group_size)

    @property
    def of_begun(self) -> int:
        """Number of the episodes in the group that has begun and not started whole."""
        return -self.next % self._group_size

    def skip(self, episodes: Iterable[int]) -> None:
        """Take episodes as done before."""
        self.before = frozenset(episodes)
        self.go_to(0)

    def go_to(self, episode: int) -> None:
        """Take that every episode before this one has started, and none after it."""
        self.next = episode
        self._pass_over()
        self.left = self.end - self.next - sum(each >= self.next for each in self.before)

    def start(self) -> None:
        """Take that the next episode starts."""
        self.next += 1
        self.left -= 1
        self._pass_over()

    def _pass_over(self) -> None:
        while self.next in self.before:
            self.next += 1

    def begin_no_more(self) -> None:
        """Let no further group begin."""
        self.groups = self.begun
        self.before = frozenset(episode for episode in self.before if episode < self.end)
        self.go_to(self.next)
