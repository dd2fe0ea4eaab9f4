"""Calls that go another way than through Ray, such as over HTTP.

Invariant: whoever waits for one, on an event loop or blocking, can stop waiting without ending it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Generator
from typing import Any, Generic, TypeVar

import rollout_service.twins as twins

R = TypeVar("R")


class NoAnswerYet(Exception):
    """The time to wait for an answer is over. The reference is still good: the answer may come."""


class Call(Generic[R]):
    """Stands for a value that comes another way than through Ray, such as over HTTP."""

    def __init__(self, future: concurrent.futures.Future[R]) -> None:
        self._future = future

    @classmethod
    def of(cls, value: R) -> Call[R]:
        """A value that is here already."""
        future: concurrent.futures.Future[R] = concurrent.futures.Future()
        future.set_result(value)
        return cls(future)

    def __await__(self) -> Generator[Any, Any, R]:
        """The value. An interrupted wait does not end the call."""
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()

    def wait(self, seconds: float | None) -> R:
        """The value; blocks.

        Raises:
            NoAnswerYet: it has not come in so many `seconds`.
        """
        concurrent.futures.wait([self._future], seconds)
        if not self._future.done():
            raise NoAnswerYet
        return self._future.result()

    async def answer(self, seconds: float | None) -> R:
        """The value; in a blocking twin the wait blocks.

        Raises:
            NoAnswerYet: it has not come in so many `seconds`.
        """
        if twins.blocks():
            return self.wait(seconds)
        try:
            async with asyncio.timeout(seconds):
                return await self
        except TimeoutError:
            raise NoAnswerYet from None
