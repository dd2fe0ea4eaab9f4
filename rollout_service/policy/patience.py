"""Asking a turn again, where that is safe.

Invariant: a turn whose answer was lost left no trace: nobody saw its tokens, nothing of it is recorded. So it may be
asked for again, as long as the caller says that the failure was the way's and not the request's. But a turn may itself
be what ends its engine, and would end one after the other: it is given up when `_MOST_DEATHS` have ended under it.

When an engine ends, every turn that it was sampling is under suspicion, and nothing says which one it was. So a turn
under which all but one of these engines have ended is asked for alone: of those that one `Patience` looks after, no
other such turn is asked for meanwhile. At the last death the others are then elsewhere, and not given up with it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

import rollout_service.logs as logs
from rollout_service.errors import EpisodeFault, FaultKind, first_line

_log = logs.logger(__name__)

_Answer = TypeVar("_Answer")

BUSY = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
"""What says nothing about the request: the endpoint or what is behind it was full, starting or gone."""

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0

_MOST_DEATHS = 3
"""Two can be bad luck: machines that are taken away, weights that do not load."""


class LostTurnError(Exception):
    """The turn's answer is lost and the turn may be asked for again; `__cause__` says why."""


class DeadEngineError(LostTurnError):
    """An engine ended while it had the turn."""

    def __init__(self, engine: str) -> None:
        """
        Args:
            engine: names it; one that ended is counted once, however often it is heard of.
        """
        super().__init__(engine)
        self.engine = engine


class Patience:
    """Asks for the turns of one process."""

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: how long one turn is asked for again.
        """
        self._seconds = seconds
        self._alone = asyncio.Lock()

    async def retry_lost_turn(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """The turn that `ask` gives, asking again after each `LostTurnError` until one came too long after the first.

        Raises:
            EpisodeFault: of kind `policy`, not to be tried again: `_MOST_DEATHS` engines ended under the turn.
            Exception: the last failure's cause.
        """
        wait, give_up = _FIRST_WAIT_SECONDS, float("inf")
        dead: set[str] = set()
        failures = 0
        while True:
            try:
                if len(dead) < _MOST_DEATHS - 1:
                    return await ask()
                async with self._alone:
                    return await ask()
            except LostTurnError as lost:
                cause = lost.__cause__ or lost
                failures += 1
                if isinstance(lost, DeadEngineError):
                    dead.add(lost.engine)
                now = time.monotonic()
                give_up = min(give_up, now + self._seconds)
            if len(dead) == _MOST_DEATHS:
                raise EpisodeFault(
                    FaultKind.POLICY,
                    f"{len(dead)} engines ended while they had this turn, so it is not asked for again; the replicas' "
                    f"logs say why. The last: {first_line(cause)}",
                    error=type(cause).__name__,
                    retryable=False,
                ) from None
            if now + wait > give_up:
                raise cause from None
            _log.info(
                "A turn was lost and is sent again (attempt %d, %.0f s left for it): %s",
                failures + 1,
                give_up - now,
                first_line(cause),
            )
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # so that a lost replica's turns do not come at once
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
