"""Phases: how long each step of a start takes, for one line of the log.

Invariant: a phase begins where the one before it ended, so that all of them together are the whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping


class Phases:
    """A stopwatch. The first phase begins with its construction."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._ended: list[str] = []

    def end(self, name: str, parts: Mapping[str, float] | None = None) -> None:
        """End a phase of this name, and begin the next one.

        Args:
            parts: seconds of the steps in it that are known, by name.
        """
        now = time.monotonic()
        listed = f" ({_written(parts)})" if parts else ""
        self._ended.append(_written({name: now - self._last}) + listed)
        self._last = now

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def __str__(self) -> str:
        """Such as `Ray 2.0 s, replicas 41.3 s (imports 6.0 s, weights 3.2 s)`."""
        return ", ".join(self._ended)


def _written(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
