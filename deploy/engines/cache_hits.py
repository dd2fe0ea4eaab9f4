"""CacheHits: how much of its latest prompts an engine found in its prefix cache.

Invariant: each turn counts by its prompt's length, and only the latest turns count.
"""

from __future__ import annotations

from collections import deque

_LATEST = 64
"""Number of turns that count."""


class CacheHits:
    """The latest prompts of one engine. One thread adds, any may ask."""

    def __init__(self) -> None:
        self._prompts: deque[tuple[int, int]] = deque(maxlen=_LATEST)

    def add(self, cached: int, prompt: int) -> None:
        """Note a turn: how many tokens of its prompt were cached, and how many there were."""
        self._prompts.append((cached, prompt))

    @property
    def share(self) -> float:
        """Share of the prompts' tokens that were cached, 0 to 1."""
        prompts = self._prompts.copy()
        return sum(cached for cached, _ in prompts) / max(1, sum(prompt for _, prompt in prompts))
