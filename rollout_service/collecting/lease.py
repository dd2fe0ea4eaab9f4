"""Leases: which clients of a service are still there.

Invariant: a client that renews more often than the lease is long keeps it. One that falls silent loses it at the first
look that finds so many seconds of silence. Time in which nobody looked is the holder's own absence, not the client's
silence: between two looks at most a quarter of the lease counts.
"""

from __future__ import annotations

_RENEWALS = 4
"""Renewals in the time that a lease lasts: a busy client may be late with three of them."""


class Leases:
    """The leases that a service has granted, by client id. The clock is handed in: seconds, which only grow."""

    def __init__(self, seconds: float, now: float) -> None:
        """
        Args:
            seconds: silence after which a lease lapses.
        """
        self._seconds = seconds
        self._looked = now
        self._counted = 0.0
        """Seconds that have counted until the last look."""
        self._renewed: dict[str, float] = {}
        """When each client renewed last, in counted seconds."""

    def renew(self, client: str, now: float) -> None:
        """Grant the client a lease, or renew the one that it has."""
        self._renewed[client] = self._clock(now)

    def give_up(self, client: str) -> None:
        """End the lease of a client that leaves. Does nothing if it has none."""
        self._renewed.pop(client, None)

    def lapsed(self, now: float) -> list[str]:
        """Look: the clients that were silent for too long. They have no lease any more."""
        self._counted, self._looked = self._clock(now), now
        gone = [client for client, at in self._renewed.items() if self._counted - at >= self._seconds]
        for client in gone:
            del self._renewed[client]
        return gone

    def silences(self, now: float) -> dict[str, float]:
        """Seconds since each client with a lease renewed it."""
        clock = self._clock(now)
        return {client: clock - at for client, at in self._renewed.items()}

    def _clock(self, now: float) -> float:
        return self._counted + min(now - self._looked, renewal_seconds(self._seconds))


def renewal_seconds(lease_seconds: float) -> float:
    """Seconds from one renewal of such a lease to the next."""
    return lease_seconds / _RENEWALS
