"""Retrying lost turns, where that is safe.

Invariant: a turn whose answer was lost left no trace, because nobody saw its tokens and nothing of it was recorded. So
it can be sent again if the caller says that the connection failed and not the request. But a turn may itself crash its
engine, and would crash one after the other. So it is given up when `_MOST_DEATHS` engines died with it.

When an engine dies, nothing says which of its turns was the cause. So a turn that needs only one more death to be given
up is sent alone: no other such turn of the same `Patience` runs at that time, and none is given up by mistake.
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
"""Statuses that say nothing about the request: the endpoint, or the server behind it, was full, starting or gone."""

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0

_MOST_DEATHS = 3
"""Two deaths can be bad luck: preempted machines, or weights that do not load."""


class LostTurnError(Exception):
    """The turn's answer was lost, and the turn can be sent again. `__cause__` says why."""


class DeadEngineError(LostTurnError):
    """The engine died while it sampled the turn."""

    def __init__(self, engine: str) -> None:
        """
        Args:
            engine: its name. An engine is counted once, even if its death is reported several times.
        """
        super().__init__(engine)
        self.engine = engine


class Patience:
    """Sends the turns of one process."""

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: how long one turn is retried.
        """
        self._seconds = seconds
        self._alone = asyncio.Lock()

    async def retry_lost_turn(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """The result of `ask`, called again after each `LostTurnError` until the time for the turn is over.

        Raises:
            EpisodeFault: of kind `policy` and final: `_MOST_DEATHS` engines died with the turn.
            Exception: the cause of the last failure.
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
                    f"{len(dead)} engines died while they had this turn, so it is not sent again; see the replicas' "
                    f"logs. The last: {first_line(cause)}",
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
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # spreads the turns of a lost replica
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
