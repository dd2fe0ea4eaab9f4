"""Repeats: the episodes of a collection that start again, now or after a pause.

Invariant: each episode in it is offered until it is taken, in the order in which the pauses end. It knows no clock: the
time is handed in.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable


class Repeats:
    """Two queues: the episodes that may be what kills their actors (suspects), and the others."""

    def __init__(self) -> None:
        self._others: deque[int] = deque()
        self._suspects: deque[int] = deque()
        self._resting: list[tuple[float, int, bool]] = []
        """Heap of those that rest: the end of the pause, the episode, whether it is a suspect."""

    def __len__(self) -> int:
        """Number of episodes that need not rest any more."""
        return len(self._others) + len(self._suspects)

    @property
    def resting(self) -> int:
        """Number of episodes that rest."""
        return len(self._resting)

    def add(self, episode: int, rested: float, *, is_suspect: bool) -> None:
        """Have the episode start again.

        Args:
            rested: when its pause ends; 0: it needs none.
        """
        if rested > 0.0:
            heapq.heappush(self._resting, (rested, episode, is_suspect))
        else:
            self._queue(episode, is_suspect)

    def _queue(self, episode: int, is_suspect: bool) -> None:
        (self._suspects if is_suspect else self._others).append(episode)

    def first(self, now: float) -> tuple[int | None, int | None]:
        """The next one that is no suspect, and the next suspect; None: there is none."""
        self._wake(now)
        return self._others[0] if self._others else None, self._suspects[0] if self._suspects else None

    def _wake(self, now: float) -> None:
        while self._resting and self._resting[0][0] <= now:
            _, episode, is_suspect = heapq.heappop(self._resting)
            self._queue(episode, is_suspect)

    def take(self, episode: int) -> bool:
        """Take out an episode that `first` gave. False: it is not one of them."""
        for queue in (self._others, self._suspects):
            if queue and queue[0] == episode:
                queue.popleft()
                return True
        return False

    def discard(self, is_gone: Callable[[int], bool]) -> None:
        """Take out the episodes that are gone."""
        self._others = deque(episode for episode in self._others if not is_gone(episode))
        self._suspects = deque(episode for episode in self._suspects if not is_gone(episode))
        self._resting = [each for each in self._resting if not is_gone(each[1])]
        heapq.heapify(self._resting)

    def wakes_at(self, now: float) -> float:
        """When the next pause will end; infinity: none will."""
        self._wake(now)
        return self._resting[0][0] if self._resting else math.inf
