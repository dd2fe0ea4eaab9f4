"""Attempts: how often the request of one user turn or one verdict may still be repeated.

Invariant: a refusal because of the endpoint's limits is not the episode's own failure. It counts only when the endpoint
has refused these requests, and nothing else happened to them, for the gate's `give_up_seconds`.
"""

from __future__ import annotations

import time

from rollout_service.pacing.gate import Gate
from rollout_service.tau2 import api_errors


class Attempts:
    """The requests of one user turn, or for one verdict."""

    def __init__(self, retries: int, gate: Gate | None) -> None:
        """
        Args:
            retries: how often a request that failed is repeated.
            gate: which makes requests wait for the endpoint's limits; None: nothing does, so every refusal counts.
        """
        self._most = retries + 1
        self._give_up_seconds = 0.0 if gate is None else gate.give_up_seconds
        self._limited_since: float | None = None
        self.made = 0
        """Requests so far."""
        self.counted = 0
        """Those of them that count."""
        self.is_limited = False
        """Whether the last one met the endpoint's limit, and does not count."""

    def failed(self, error: Exception) -> None:
        """Note that a request failed."""
        self.made += 1
        now = time.monotonic()
        if not api_errors.is_rate_limit(error):
            self._limited_since = None
        elif self._limited_since is None:
            self._limited_since = now
        self.is_limited = self._limited_since is not None and now - self._limited_since < self._give_up_seconds
        if not self.is_limited:
            # The endpoint is given up at once after so long a time.
            self.counted = self._most if self._limited_since is not None and self._give_up_seconds else self.counted + 1

    @property
    def are_over(self) -> bool:
        """Whether the request is not repeated any more."""
        return self.counted >= self._most
