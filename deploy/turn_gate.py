"""TurnGate: lets turns in while the replica samples, and tells when all have left.

Invariant: while the gate is closed no turn enters, but turns inside may leave. Nobody who waits misses a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class TurnGate:
    """The gate of one replica. It is open at first."""

    def __init__(self, version: int) -> None:
        self.is_open = True
        self.inside = 0
        """Number of turns that are being sampled."""
        self._version = version
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the gate to open; the turn counts as inside within this context."""
        await self._until(lambda: self.is_open)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._notify()

    def close(self) -> None:
        """Let no turn in from now on."""
        self.is_open = False

    def open(self) -> None:
        """Let turns in again."""
        self.is_open = True
        self._notify()

    def set_version(self, version: int) -> None:
        """Note the version of the replica's weights."""
        self._version = version
        self._notify()

    async def reached(self, version: int) -> None:
        """Wait until the replica has weights of that version or a newer one."""
        await self._until(lambda: self._version >= version)

    async def empty(self) -> None:
        """Wait until no turn is inside."""
        await self._until(lambda: not self.inside)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _notify(self) -> None:
        """Wake all waiters once."""
        self._changed.set()
        self._changed = asyncio.Event()
