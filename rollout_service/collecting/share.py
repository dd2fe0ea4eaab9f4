"""Share: what one collection had of the slots' time, by its weight.

Invariant: use only grows, and a collection that had nothing to start saves up no claim for later. It knows no clock:
the time is handed in.
"""

from __future__ import annotations

import math


class Share:
    """Slot-seconds of one collection, divided by its weight. The one with the least starts next."""

    def __init__(self, weight: float, used: float = 0.0) -> None:
        self._weight = weight
        self._running = 0
        self._used = used
        self._counted_until = 0.0

    @property
    def is_running(self) -> bool:
        """Whether episodes of the collection run."""
        return self._running > 0

    def rank(self, served: float, now: float) -> tuple[float, float]:
        """Who ranks lowest starts next: the least use, and among equals the fewest running episodes, by weight.

        Args:
            served: use of the collection that started an episode last. One that could not start any meanwhile has
                fallen behind it, and counts as equal.
        """
        return max(self.used(now), served), self._running / self._weight

    def start(self, served: float, now: float) -> float:
        """Count an episode that starts. Returns the use so far."""
        self._used = max(self.used(now), served)
        self._running += 1
        return self._used

    def end(self, now: float) -> None:
        """Count the end of an episode."""
        self.used(now)
        self._running -= 1

    def used(self, now: float) -> float:
        """Use until now."""
        if now < math.inf:
            self._used += self._running * max(0.0, now - self._counted_until) / self._weight
            self._counted_until = max(self._counted_until, now)
        return self._used
