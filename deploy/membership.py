"""Membership: a replica's part in one process group for weights, and how its waits there end.

Invariant: no wait in the group outlives it. A wait ends when the trainer's process ends, when the group is left, or
when its time is up, also where the engine would wait forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from rollout_service.policy.weights import Rendezvous

T = TypeVar("T")

_GRACE_SECONDS = 3.0
"""How long a wait may still last after the group was lost. Some engines notice it themselves and keep their weights."""

_SILENCE_SECONDS = 5
"""Seconds of silence after which the system asks whether the trainer's host is still there, as often as it tries."""


class GroupLost(Exception):
    """The trainer's process has ended, the group was left, or the time is up. What worked in the group was cancelled,
    but a thread or a process of the engine may still wait."""


class Membership:
    """One replica in one group."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        self._rendezvous = rendezvous
        self._left = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work that may wait in the group.

        Raises:
            GroupLost: the work did not end by itself.
            Exception: what the work raised.
        """
        self._idle.clear()
        task = asyncio.ensure_future(work)
        ends = asyncio.ensure_future(self._end())
        try:
            await asyncio.wait({task, ends}, timeout=self._rendezvous.timeout_seconds, return_when="FIRST_COMPLETED")
            if ends.done():
                await asyncio.wait({task}, timeout=_GRACE_SECONDS)
            if task.done():
                return task.result()
            why = ends.result() if ends.done() else f"nothing came for {self._rendezvous.timeout_seconds:g} s"
            raise GroupLost(f"{self._rendezvous.name}: {why}")
        finally:
            ends.cancel()
            task.cancel()
            self._idle.set()

    async def end(self) -> None:
        """End what works in the group. Returns when it has ended."""
        self._left.set()
        await self._idle.wait()

    async def _end(self) -> str:
        """Wait for what ends the group, and say what it was."""
        left, gone = asyncio.ensure_future(self._left.wait()), asyncio.ensure_future(self._trainer_ends())
        try:
            await asyncio.wait({left, gone}, return_when="FIRST_COMPLETED")
        finally:
            left.cancel()
            gone.cancel()
        return "it was left" if self._left.is_set() else "the trainer's process has ended"

    async def _trainer_ends(self) -> None:
        """Wait until the trainer's process ends. It serves the store where the ranks met for as long as it has the
        group; the connection to that breaks at once when it dies, and after some seconds when its host does."""
        try:
            reader, writer = await asyncio.open_connection(self._rendezvous.address, self._rendezvous.port)
        except ConnectionRefusedError:
            return
        except OSError:  # this says nothing of the trainer
            await asyncio.Event().wait()
            raise
        with contextlib.suppress(OSError), contextlib.closing(writer):
            _keep_alive(writer.get_extra_info("socket"))
            await reader.read()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", _SILENCE_SECONDS), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", _SILENCE_SECONDS)):
        if hasattr(socket, option):  # other systems name these differently, or not at all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
