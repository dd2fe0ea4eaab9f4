"""When an episode that an infrastructure fault stopped is played again.

Invariant: the wait depends on the number of the attempt alone.
"""

from __future__ import annotations

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 32.0


def seconds_before_retry(attempt: int) -> float:
    """Seconds to wait after the failed attempt of this number, from 1: it doubles with each attempt, up to 32 s."""
    return min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(attempt - 1, 16))
