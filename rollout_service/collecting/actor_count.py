"""ActorCount: how many environment actors a service should have, by its episodes and the cluster's free CPUs.

Invariant: the number stays between its bounds. It grows at once, no further than CPUs are free, and shrinks only to
what was enough for a while. It knows no clock: the time is handed in.
"""

from __future__ import annotations


class ActorCount:
    """Follows the demand. The first number is the least one."""

    def __init__(self, least: int, most: int, slots: int, idle_seconds: float) -> None:
        """
        Args:
            least, most: bounds of the number.
            slots: episodes that one actor runs at a time.
            idle_seconds: how long fewer actors must be enough before the number shrinks.
        """
        self.count = least
        self._least = least
        self._most = most
        self._slots = slots
        self._idle_seconds = idle_seconds
        self._enough: tuple[float, int] | None = None
        """Since when fewer actors are enough, and how many were needed at most since then."""

    def update(self, now: float, demand: int, free_cpus: float) -> int:
        """The number for this demand.

        Args:
            demand: episodes that run, or could run if there were slots for them.
            free_cpus: of the cluster, beyond those that actors have or wait for.
        """
        needed = min(self._most, max(self._least, -(-demand // self._slots)))
        if needed >= self.count:
            self._enough = None
            self.count = max(self.count, min(needed, self.count + int(max(0.0, free_cpus))))
            return self.count
        since, peak = self._enough or (now, needed)
        self._enough = (since, max(peak, needed))
        if now - since >= self._idle_seconds:
            self.count, self._enough = self._enough[1], None
        return self.count
