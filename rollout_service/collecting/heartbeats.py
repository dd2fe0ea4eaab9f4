"""Heartbeats: which actors have been silent for too long.

Invariant: only time counts in which the watcher itself ran. When its own process was stopped, or starved of CPU, nobody
is taken for silent on that account. It knows no clock: the time is handed in.
"""

from __future__ import annotations


class Heartbeats:
    """Notes when each actor answered last."""

    def __init__(self, silence_seconds: float, longest_step: float) -> None:
        """
        Args:
            silence_seconds: an actor that has not answered for so long is silent.
            longest_step: most seconds that pass between two calls of `tick` while the watcher runs.
        """
        self._silence_seconds = silence_seconds
        self._longest_step = longest_step
        self._last_tick: float | None = None
        self._awake = 0.0
        """Seconds that the watcher ran."""
        self._answered: dict[str, float] = {}

    def tick(self, now: float) -> None:
        """Let time pass."""
        if self._last_tick is not None:
            self._awake += min(max(0.0, now - self._last_tick), self._longest_step)
        self._last_tick = now

    def answered(self, name: str) -> None:
        """Note an actor's answer, or that it is new."""
        self._answered[name] = self._awake

    def silent(self, names: list[str]) -> list[str]:
        """Those of these actors that are silent. The others, and new ones, are watched; the rest is forgotten."""
        self._answered = {name: self._answered.get(name, self._awake) for name in names}
        return [name for name, at in self._answered.items() if self._awake - at >= self._silence_seconds]
