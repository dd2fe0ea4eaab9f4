"""Which replica serves which session. Pure: no Ray, no clock of its own.

Invariant: a session stays with its replica for as long as that replica lives. A new session goes to the replica with
the fewest sessions in use; equal ones are told apart by hashing, so that tables that do not know of each other mostly
choose alike.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable

_IN_USE_SECONDS = 120.0
"""A session that was silent for longer is not counted: it most likely ended. It keeps its replica all the same."""

_KEPT = 100_000
"""Sessions that are remembered, the most recently used ones."""


class SessionTable:
    """Remembers the replica of each session."""

    def __init__(self) -> None:
        self._replicas: OrderedDict[str, str] = OrderedDict()
        self._last_use: OrderedDict[str, float] = OrderedDict()
        """Of the sessions in use, the longest silent first."""
        self._counts: dict[str, int] = {}

    def replica_of(self, session: str, alive: Collection[str], now: float) -> str:
        """The session's replica, one of `alive` (not empty); `now` in seconds, never decreasing."""
        self._expire(now)
        replica = self._replicas.get(session)
        if replica is None or replica not in alive:
            self._release(session)
            replica = self._least_used(session, alive)
            self._replicas[session] = replica
        if session not in self._last_use:
            self._counts[replica] = self._counts.get(replica, 0) + 1
        self._last_use[session] = now
        self._last_use.move_to_end(session)
        self._replicas.move_to_end(session)
        if len(self._replicas) > _KEPT:
            self._forget(next(iter(self._replicas)))
        return replica

    def in_use(self, replica: str) -> int:
        """Sessions of the replica that were heard of lately."""
        return self._counts.get(replica, 0)

    def _least_used(self, session: str, alive: Iterable[str]) -> str:
        return min(alive, key=lambda replica: (self.in_use(replica), _rank(session, replica)))

    def _expire(self, now: float) -> None:
        while self._last_use and now - next(iter(self._last_use.values())) > _IN_USE_SECONDS:
            self._release(next(iter(self._last_use)))

    def _release(self, session: str) -> None:
        """No longer count the session."""
        if self._last_use.pop(session, None) is None:
            return
        replica = self._replicas[session]
        self._counts[replica] -= 1
        if not self._counts[replica]:
            del self._counts[replica]

    def _forget(self, session: str) -> None:
        self._release(session)
        del self._replicas[session]


def _rank(session: str, replica: str) -> bytes:
    """Rendezvous hashing: the same in every process."""
    return hashlib.blake2b(f"{session}|{replica}".encode(), digest_size=8).digest()
