"""RateLimit: how often each caller may ask.

Invariant: in any span of t seconds a caller is let through at most `burst + rate * t` times. What is remembered stays
bounded, whoever calls.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_MOST_CALLERS = 10_000


class RateLimit:
    """A token bucket for each caller."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            rate: requests per second in the long run.
            burst: requests at once after a pause, at least 1.
            clock: seconds that never go backwards.
        """
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """When each caller's bucket will be full again, if nothing more is asked; the latest caller last."""

    def wait(self, caller: str) -> float:
        """Count a request. Returns 0.0 if it may go on, else the seconds after which the caller should ask again."""
        now = self._clock()
        full_at = max(self._free_at.get(caller, now), now) + 1.0 / self._rate
        late = full_at - now - self._burst / self._rate
        if late > 1e-9:  # the clock's rounding is no reason to refuse
            return late
        self._free_at[caller] = full_at
        self._free_at.move_to_end(caller)
        if len(self._free_at) > _MOST_CALLERS:
            self._free_at.popitem(last=False)
        return 0.0
