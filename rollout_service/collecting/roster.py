"""Roster: the states of a collection's episodes, group by group.

Invariant: it has the groups from the first one up to the last one that was reached, and no other: a collection may have
more groups than anybody can count. A group is complete when each of its episodes is done.
"""

from __future__ import annotations

from rollout_service.collecting.episode_state import EpisodeState


class Roster:
    """The episodes of the groups that were reached. An episode's index is group × group size + sample index."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.done = 0
        """Number of episodes that are done."""
        self._states: list[EpisodeState] = []
        self._open: list[int] = []
        """By group: number of its episodes that are not done."""

    @property
    def groups(self) -> int:
        """Number of groups that were reached."""
        return len(self._open)

    def reach(self, groups: int) -> None:
        """Have at least so many groups."""
        for _ in range(self.groups, groups):
            self._states.extend(EpisodeState() for _ in range(self.group_size))
            self._open.append(self.group_size)

    def cut(self, groups: int) -> None:
        """Have at most so many groups."""
        first = groups * self.group_size
        self.done -= sum(state.done for state in self._states[first:])
        del self._states[first:], self._open[groups:]

    def __getitem__(self, episode: int) -> EpisodeState:
        return self._states[episode]

    def members(self, group: int) -> range:
        """The episodes of a group."""
        return range(group * self.group_size, (group + 1) * self.group_size)

    def is_complete(self, group: int) -> bool:
        """Whether every episode of the group is done."""
        return self._open[group] == 0

    def scored(self, group: int) -> int:
        """Number of the group's episodes whose result has a score."""
        return sum(self._states[episode].scored for episode in self.members(group))

    def end(self, episode: int, *, scored: bool = False) -> bool:
        """Have the episode done. Returns whether its group is complete now."""
        state, group = self._states[episode], episode // self.group_size
        state.scored = scored
        if not state.done:
            state.done = True
            self.done += 1
            self._open[group] -= 1
        return self._open[group] == 0

    def open_again(self, episode: int) -> None:
        """Have the episode, which is done, not done."""
        self._states[episode].done = False
        self.done -= 1
        self._open[episode // self.group_size] += 1

    def age(self, group: int, current: int) -> int:
        """The oldest weight version in the group; `current` if nothing was sampled."""
        versions = (self._states[episode].oldest_version for episode in self.members(group))
        return min((version for version in versions if version is not None), default=current)
