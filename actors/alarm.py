"""Alarm: calls somebody when a pause is over.

Invariant: one call is due at most, the one that was asked for last.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Use it on one event loop."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._due: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Ring after so many seconds, and not when it was asked for before. Infinity: not at all."""
        if self._due is not None:
            self._due.cancel()
        self._due = None if math.isinf(seconds) else asyncio.get_running_loop().call_later(seconds, self._ring)
