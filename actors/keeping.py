"""Keeping: collections that wait for a reader, and when they are given up.

Invariant: a collection that waits is given up `service.keep_collections_seconds` after its reader was gone, or after a
new service found it in the journal; never while somebody reads it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from actors.running import RunningCollection


class Keeping:
    """The collections of one coordinator that wait. Use it on one event loop."""

    def __init__(self, seconds: float, give_up: Callable[[str, str], object]) -> None:
        """
        Args:
            seconds: how long each one waits.
            give_up: called with the id of one that waited so long, and with the reason.
        """
        self._seconds = seconds
        self._give_up = give_up
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def begin(self, running: RunningCollection) -> None:
        """Have it wait from now on."""
        self.end(running)
        running.kept_until = time.monotonic() + self._seconds
        why = f": nobody read it for service.keep_collections_seconds={self._seconds:g}"
        self._timers[running.name] = asyncio.get_running_loop().call_later(
            self._seconds, self._give_up, running.name, why
        )

    def end(self, running: RunningCollection) -> None:
        """It waits no longer."""
        running.kept_until = None
        if (timer := self._timers.pop(running.name, None)) is not None:
            timer.cancel()
