"""Asking a turn again, where that is safe.

Invariant: a turn whose answer was lost left no trace: nobody saw its tokens, nothing of it is recorded. So it may be
asked for again, as long as the caller says that the failure was the way's and not the request's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from rollout_service.policy.base import Generation

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0


class LostTurnError(Exception):
    """The turn's answer is lost and the turn may be asked for again; `__cause__` says why."""


async def asked_again(ask: Callable[[], Awaitable[Generation]], seconds: float) -> Generation:
    """The turn, asking again after each `LostTurnError` until one came `seconds` after the first.

    Raises:
        Exception: the last failure's cause.
    """
    wait, give_up = _FIRST_WAIT_SECONDS, float("inf")
    while True:
        try:
            return await ask()
        except LostTurnError as lost:
            now = time.monotonic()
            give_up = min(give_up, now + seconds)
            if now + wait > give_up:
                raise (lost.__cause__ or lost) from None
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # so that the turns of a lost replica do not come at once
        wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
