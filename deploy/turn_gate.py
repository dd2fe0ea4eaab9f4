"""Turnstile: lets turns in while the replica samples, and tells when all are out.

Invariant: while it is closed no turn enters, and those that are inside still may leave. Nobody who waits misses a
change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class TurnGate:
    """One per replica; open at first."""

    def __init__(self, version: int) -> None:
        self.is_open = True
        self.inside = 0
        """Turns that are being sampled."""
        self._version = version
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for admission, and be counted while inside."""
        await self._until(lambda: self.is_open)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._notify()

    def close(self) -> None:
        """Let nobody in from now on."""
        self.is_open = False

    def open(self) -> None:
        """Let turns in again."""
        self.is_open = True
        self._notify()

    def set_version(self, version: int) -> None:
        """The replica has weights of that version, whether open or not."""
        self._version = version
        self._notify()

    async def reached(self, version: int) -> None:
        """Wait until the replica has weights of that version, or newer ones."""
        await self._until(lambda: self._version >= version)

    async def empty(self) -> None:
        """Wait until nobody is inside."""
        await self._until(lambda: not self.inside)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _notify(self) -> None:
        """Wake everyone who waits, once."""
        self._changed.set()
        self._changed = asyncio.Event()
