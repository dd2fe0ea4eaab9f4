"""Shares: how the processes of a service divide the requests that may be in flight towards one endpoint.

Invariant: the processes together never hold more places than the limit, except those of requests that were in flight
when the limit sank. A place that a process holds serves one request after the other without another word. A process
that falls silent loses its places. Pure: the time is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rollout_service.pacing.controller import Controller, Result

SILENCE_SECONDS = 10.0
"""Silence after which a process counts as dead. A living one reports several times a second while it has requests."""


_ROUND_SECONDS = 1.0
"""Time after which another process is the first to have a place."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a process says of its requests since its last report."""

    in_flight: int
    waiting: int
    """Requests that wait for a place."""
    started: int = 0
    results: tuple[Result, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """What a process may do until its next report."""

    places: int
    """Requests that it may have in flight."""
    starts: int | None = None
    """Requests that it may start; None: any number, one after the other."""
    pause_seconds: float = 0.0
    """Seconds before it may start any."""


@dataclass(slots=True)
class _Process:
    in_flight: int = 0
    waiting: int = 0
    places: int = 0
    starts: int = 0
    """Those of its grant that are not reported as started."""
    heard_at: float = 0.0


class Shares:
    """The places of one endpoint, and who has them."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._processes: dict[str, _Process] = {}

    def report(self, name: str, report: Report, now: float) -> Grant:
        """Take a process's report. Returns what it may do from now on, in place of what it was granted before.

        Args:
            name: of the process.
        """
        controller, process = self._controller, self._processes.setdefault(name, _Process())
        in_flight = self._in_flight() - process.in_flight + report.in_flight + len(report.results)
        controller.started(report.started, now)
        for result in report.results:
            controller.ended(result, max(1, in_flight), now)
            in_flight -= 1
        process.in_flight, process.waiting, process.heard_at = report.in_flight, report.waiting, now
        self._forget_silent(now)
        others = [other for other in self._processes.values() if other is not process]
        free = controller.limit - sum(max(other.places, other.in_flight) for other in others)
        process.places = max(0, min(self._fair_share(name, now), free))
        starts = controller.startable(now)
        if starts is not None:
            starts = max(0, min(starts - sum(other.starts for other in others), 2 * process.places))
        process.starts = starts or 0
        pause = controller.wait(now)
        if starts == 0:
            pause = max(pause, controller.refills_in(now))
        return Grant(process.places, starts, pause)

    def forget(self, name: str) -> None:
        """Take back the places of a process that has ended."""
        self._processes.pop(name, None)

    def _in_flight(self) -> int:
        return sum(process.in_flight for process in self._processes.values())

    def _forget_silent(self, now: float) -> None:
        for name, process in list(self._processes.items()):
            if now - process.heard_at > SILENCE_SECONDS:
                del self._processes[name]

    def _fair_share(self, name: str, now: float) -> int:
        """The places that this process should have: as many as it has requests, if there are enough, else an equal
        part; what nobody needs is divided, so that the next request need not wait for a report. Who has one place more
        than others changes with the time, so that a single place goes round."""
        names = list(self._processes)
        first = int(now / _ROUND_SECONDS) % len(names)
        wanted = {
            each: self._processes[each].in_flight + self._processes[each].waiting
            for each in (*names[first:], *names[:first])
        }
        shares = dict.fromkeys(wanted, 0)
        left = self._controller.limit
        while left and (short := [each for each in wanted if shares[each] < wanted[each]]):
            part = max(1, left // len(short))
            for each in short[:left]:
                more = min(part, wanted[each] - shares[each])
                shares[each] += more
                left -= more
        part, more = divmod(left, len(shares))
        return shares[name] + part + (list(shares).index(name) < more)

    def status(self, now: float) -> dict[str, Any]:
        """The endpoint's numbers, as `Coordinator.status` has them."""
        controller = self._controller
        return {
            "limit": controller.limit,
            "in_flight": self._in_flight(),
            "waiting": sum(process.waiting for process in self._processes.values()),
            "answered": controller.answered,
            "refused": controller.refused,
            "paused_seconds": round(max(controller.wait(now), self._controller.refills_in(now)), 3),
        }
