"""FilteredCollection: a collection of which some groups are dropped, and replaced by others.

Invariant: a group that has begun is kept, dropped, let go of or undecided, and never two of them. Groups that are kept
are handed out, and no more than are wanted. When enough are kept, what is undecided is let go of: its episodes are no
failures, and nothing is repeated for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.episode_state import Handout
from rollout_service.collecting.refill import Keep, further_groups, keep_rate, most_kept


class FilteredCollection(Collection):
    """The state of one request for groups that are kept. `groups` is the number of those that may begin."""

    def __init__(
        self, collection_id: str, groups: int, group_size: int, *, wanted: int, keeps: Keep, **settings: Any
    ) -> None:
        """
        Args:
            wanted: number of groups that are to be kept.
            settings: as for `Collection`.
        """
        super().__init__(collection_id, groups, group_size, **settings)
        self.wanted = wanted
        self.keeps = keeps
        self.dropped = 0
        """Number of groups that were dropped."""
        self.dropped_in_a_row = 0
        """Those of them since the last one that was kept."""
        self.surplus = 0
        """Number of groups that had begun when enough were kept."""
        self._gone: set[int] = set()
        """Groups that were dropped or let go of."""
        self._unjudged = 0
        """Groups that the reader was given, and may still drop."""

    @property
    def kept(self) -> int:
        """Number of groups of which it is decided that they are kept. They may wait to be handed out."""
        if self.keeps == "reader":
            return self.shelf.handed_out - self._unjudged
        return self.shelf.handed_out + self.shelf.waiting

    @property
    def undecided(self) -> int:
        """Number of groups that have begun, of which nothing is decided."""
        return self.begun - self.kept - self.dropped - self.surplus

    @property
    def is_enough(self) -> bool:
        """Whether the reader has all groups that are wanted."""
        return self.shelf.handed_out - self._unjudged >= self.wanted

    @property
    def exhausted(self) -> bool:
        """Whether no further group will be handed out."""
        is_played = self.shelf.handed_out + self.dropped + self.surplus == self.unstarted.groups and not self._unjudged
        return self.is_enough or is_played or (self._cancelled and self.shelf.is_empty)

    @property
    def unbegun(self) -> int:
        """Number of groups that have not begun and may still be needed."""
        return 0 if self.kept >= self.wanted else super().unbegun

    @property
    def _further(self) -> int:
        rate = keep_rate(self.kept, self.dropped)
        return min(super().unbegun, further_groups(self.wanted - self.kept, self.undecided, rate))

    @property
    def _before_new(self) -> int:
        rate = keep_rate(self.kept, self.dropped)
        return self.kept - self.shelf.handed_out + most_kept(self.undecided, rate)

    @property
    def _new(self) -> int:
        return min(self.unstarted.left, self.unstarted.of_begun + self._further * self.group_size)

    def take(self) -> Handout | None:
        """As `Collection.take`. A group that the reader judges is undecided until it does."""
        handout = None if self.is_enough else super().take()
        self._unjudged += handout is not None and self.keeps == "reader"
        return handout

    def judged(self, again: bool) -> None:
        """Note that the reader has dropped all that it drops of what it was given; with `again`, that it may have
        missed some of that."""
        if self._unjudged and not again:
            self._unjudged = self.dropped_in_a_row = 0

    def drop(self, group: int) -> bool:
        """Drop a group that was finished: another one takes its place. Returns False if it was dropped before."""
        if group in self._gone or group >= self.begun:
            return False
        self._gone.add(group)
        self.dropped += 1
        self.dropped_in_a_row += 1
        if group in self.shelf.ready:
            self.shelf.ready.remove(group)
        elif self._roster.is_complete(group):
            self.shelf.acknowledge((group,))
            self.shelf.take_back(is_data=not self.withheld(group))
            self._unjudged = max(0, self._unjudged - 1)
        else:  # its results went with the process that handed it out, and it is played again
            self._again.discard(lambda episode: episode // self.group_size == group)
        return True

    def restore_dropped(self, groups: Iterable[int]) -> None:
        """Take which of the groups that `restore` was given as acknowledged were dropped."""
        dropped = set(groups)
        self._gone |= dropped
        self.dropped += len(dropped)
        self.shelf.handed_out -= len(dropped)

    def is_gone(self, group: int) -> bool:
        """Whether the group was dropped or let go of."""
        return group in self._gone

    def let_go(self) -> list[int]:
        """Let go of what is not wanted any more, once enough groups are kept. Returns its groups."""
        if self.kept < self.wanted or not self.undecided:
            return []
        open_ones = [group for group in range(self.begun) if not self._roster.is_complete(group)]
        if self.keeps == "reader":
            open_ones += self.shelf.ready
            self.shelf.ready.clear()
        surplus = [group for group in open_ones if group not in self._gone]
        self._gone.update(surplus)
        self.surplus += len(surplus)
        self._again.discard(lambda episode: self.is_gone(episode // self.group_size))
        self.unstarted.go_to(self.begun * self.group_size)  # of the last group, some episodes may not have started
        self._reach_next()
        return surplus
