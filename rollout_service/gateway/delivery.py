"""Delivery: the groups of one collection on their way to a reader that may lose its connection.

Invariant: groups are numbered from 1 in the order in which the service gives them. Each is held until it is
acknowledged, so a reader that names the last number it has misses none and gets none twice. The service is asked for a
group only when a reader waits for it, and never while as many as allowed are held: memory is bounded, and a slow reader
holds back only its own collection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from rollout_service.errors import ServiceError

T = TypeVar("T")


class CursorError(ServiceError):
    """A number that a reader names is not one that it can have."""


class Missing(ServiceError):
    """There is no such collection for this caller."""


class Taken(ServiceError):
    """Another client reads the collection."""


class Delivery(Generic[T]):
    """Numbered groups of one collection. Use it in one event loop."""

    def __init__(self, take: Callable[[], Awaitable[T | None]], release: Callable[[T], None], most_held: int) -> None:
        """
        Args:
            take: gives the collection's next group, waiting for it; None at the end. It raises what ended the
                collection.
            release: called with each group that the reader has for good.
            most_held: most groups that wait for their acknowledgement.
        """
        self._take = take
        self._release = release
        self._most_held = most_held
        self._held: dict[int, T] = {}
        self._taken = 0
        """Number of the last group that the service gave."""
        self._acknowledged = 0
        self._ended = False
        self._error: BaseException | None = None
        self._taking: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        """Set when a group was acknowledged."""

    @property
    def ended(self) -> bool:
        """Whether the service has no more groups of the collection, be it that it failed."""
        return self._ended or self._error is not None

    @property
    def is_over(self) -> bool:
        """Whether the reader has every group of the collection for good."""
        return self.ended and not self._held

    async def group(self, number: int) -> T | None:
        """The group of this number, waiting for it; None: the collection has no more. An interrupted wait loses none.

        Raises:
            CursorError: the reader cannot have it.
            Exception: what ended the collection.
        """
        while number not in self._held:
            self.check(number - 1)
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            if len(self._held) >= self._most_held:
                self._room.clear()
                await self._room.wait()
                continue
            if self._taking is None:
                self._taking = asyncio.ensure_future(self._take_one())
            await asyncio.shield(self._taking)
        return self._held[number]

    def check(self, after: int) -> None:
        """Check that a reader who has the groups up to this number can have the next.

        Raises:
            CursorError: it cannot.
        """
        if after < self._acknowledged:
            raise CursorError(
                f"The groups up to {self._acknowledged} were acknowledged and let go, so there is none after {after}.",
                f"Read on after {self._acknowledged}.",
            )
        if after > self._taken:
            raise CursorError(
                f"Group {after} was not given yet; the last one was {self._taken}.", f"Read on after {self._taken}."
            )

    def acknowledge(self, number: int) -> None:
        """Let go of the groups up to this number, which the reader has. Once more changes nothing.

        Raises:
            CursorError: that group was not given yet.
        """
        if number > self._taken:
            self.check(number)
        for old in range(self._acknowledged + 1, number + 1):
            self._let_go(old)
            self._acknowledged = old

    def release(self, numbers: Iterable[int]) -> None:
        """Let go of single groups, which the reader has, though it may not have those before them.

        Raises:
            CursorError: one of them was not given yet.
        """
        for number in numbers:
            if number > self._taken:
                self.check(number)
            self._let_go(number)

    def held(self, numbers: Iterable[int]) -> dict[int, T]:
        """Those of the groups that were not let go.

        Raises:
            CursorError: one of them was not given yet.
        """
        found = {}
        for number in numbers:
            if number > self._taken:
                self.check(number)
            if number in self._held:
                found[number] = self._held[number]
        return found

    def take_out(self, numbers: Iterable[int]) -> None:
        """Let go of groups that the reader does not keep."""
        for number in numbers:
            if self._held.pop(number, None) is not None:
                self._room.set()

    def was_released(self, number: int) -> bool:
        """Whether the group of this number was let go although one before it was not."""
        return self._acknowledged < number <= self._taken and number not in self._held

    def _let_go(self, number: int) -> None:
        if number in self._held:
            self._release(self._held.pop(number))
            self._room.set()

    async def _take_one(self) -> None:
        try:
            taken = await self._take()
        except Exception as error:
            self._error = self._error or error
        else:
            if taken is None:
                self._ended = True
            elif self._error is None:
                self._taken += 1
                self._held[self._taken] = taken
        finally:
            self._taking = None

    def close(self, error: BaseException) -> None:
        """Let go of everything. Whoever waits or asks from now on gets the error."""
        self._error = error
        self._held.clear()
        self._room.set()
