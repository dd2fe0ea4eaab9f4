"""Which replica serves which session. Pure: no Ray, and the caller passes the time.

Invariant: a session in use stays with its replica as long as that replica lives, and so do the last ones that are not.
A new session goes to the replica with the fewest sessions in use. Ties are broken by a hash, so that tables in
different processes mostly choose the same replica.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable

_IN_USE_SECONDS = 120.0
"""After so many seconds without a request a session no longer counts as in use, but it keeps its replica."""

_KEPT = 4096
"""Number of sessions that are remembered though they are not in use: the most recently used ones. Nobody says that a
session is over, each takes 200 bytes, and an environment actor has a new one with every episode."""


class SessionTable:
    """Remembers the replica of each session."""

    def __init__(self) -> None:
        self._replicas: OrderedDict[str, str] = OrderedDict()
        self._last_use: OrderedDict[str, float] = OrderedDict()
        """Time of the last request of each session in use, oldest first."""
        self._counts: dict[str, int] = {}

    def replica_of(self, session: str, alive: Collection[str], now: float) -> str:
        """The session's replica, one of `alive` (not empty). `now` is in seconds and never decreases."""
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
        while len(self._replicas) - len(self._last_use) > _KEPT:
            self._replicas.popitem(last=False)  # the one that was used least recently, so it is not in use
        return replica

    def in_use(self, replica: str) -> int:
        """Number of the replica's sessions in use."""
        return self._counts.get(replica, 0)

    def _least_used(self, session: str, alive: Iterable[str]) -> str:
        return min(alive, key=lambda replica: (self.in_use(replica), _rank(session, replica)))

    def _expire(self, now: float) -> None:
        while self._last_use and now - next(iter(self._last_use.values())) > _IN_USE_SECONDS:
            self._release(next(iter(self._last_use)))

    def _release(self, session: str) -> None:
        """Stop counting the session as in use."""
        if self._last_use.pop(session, None) is None:
            return
        replica = self._replicas[session]
        self._counts[replica] -= 1
        if not self._counts[replica]:
            del self._counts[replica]


def _rank(session: str, replica: str) -> bytes:
    """Rendezvous hashing, which gives the same order in every process."""
    return hashlib.blake2b(f"{session}|{replica}".encode(), digest_size=8).digest()
