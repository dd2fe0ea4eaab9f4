"""Gate: where the requests of one process wait for their turn at one endpoint.

Invariant: no more requests are in flight than the last grant allows, and they start in the order in which they came.
What a request does while it waits is its thread's own business; nothing else waits with it. Grants come from an
exchange of reports, which a thread of the gate makes while there are requests: none of them waits for an exchange, if
the grant has a free place. When the exchange fails, the gate goes on with the places that it has, by a controller of
its own, and tries again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import rollout_service.logs as logs
from rollout_service.pacing.controller import Controller, Result
from rollout_service.pacing.shares import Grant, Report, Shares

_log = logs.logger(__name__)

_REPORT_SECONDS = 0.2
"""Most seconds between two reports while there are requests. So soon all processes hear of a pause."""

NOTICE_SECONDS = 0.3
"""Seconds until all processes have a new grant, in all likelihood."""

_LEAST_REPORT_SECONDS = 0.02
"""Least seconds between two reports."""

_IDLE_SECONDS = 5.0
"""Seconds without a request after which the reporting thread ends."""

_AGAIN_SECONDS = 2.0
"""Seconds until an exchange that failed is tried again."""

Exchange = Callable[[Report], Grant]
"""Gives a report to whoever divides the places, and returns the grant. It may raise anything when that is out of
reach."""


class Patience(Protocol):
    """How long a request can wait."""

    def remaining(self) -> float:
        """Seconds left. Raises when there are none, or when nobody waits any more."""


class Place:
    """A place of a request that is in flight."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.result: Result | None = None
        """How the request ended; None: not known, so that it says nothing about the endpoint."""


class Gate:
    """The way of one process to one endpoint. Thread-safe."""

    def __init__(
        self, bound: int, longest_wait: float, give_up_seconds: float, exchange: Exchange | None = None
    ) -> None:
        """
        Args:
            bound: most requests in flight.
            longest_wait: most seconds without a request that the provider can ask for.
            give_up_seconds: how long an endpoint may refuse an episode's request, again and again.
            exchange: None: this process is the only one.
        """
        self.give_up_seconds = give_up_seconds
        self._bound, self._longest_wait = bound, longest_wait
        self._exchange = exchange
        self._own = self._shares_of_own(bound)
        self._shared_again_at = 0.0
        """When the exchange is tried again after it failed."""
        self._lock = threading.Lock()
        self._grant = Grant(0)
        self._starts_left: int | None = 0
        self._paused_until = 0.0
        """End of the pause that the grant asks for."""
        self._asked_until = 0.0
        """End of the wait that the endpoint asked this process for. It need not wait for a grant to know."""
        self._in_flight = 0
        self._queue: deque[threading.Event] = deque()
        self._started = 0
        self._results: list[tuple[float, Result]] = []
        """Those that are not reported yet, with the times of their ends."""
        self._news = threading.Event()
        """Set when a report should not wait."""
        self._reporter: threading.Thread | None = None

    @contextlib.contextmanager
    def place(self, patience: Patience) -> Iterator[Place]:
        """Wait for a place, and hold it within this context. Set the place's `result` before it ends.

        Raises:
            Whatever `patience.remaining` raises.
        """
        self._wait(patience)
        place = Place()
        try:
            yield place
        finally:
            self._leave(place.result)

    def _wait(self, patience: Patience) -> None:
        turn = threading.Event()
        with self._lock:
            if self._reporter is None:
                reporter = threading.Thread(target=self._report_on, name="user-gate", daemon=True)
                reporter.start()  # it may raise: then nothing has changed, and the next request tries again
                self._reporter = reporter
            self._queue.append(turn)
            self._admit()
            if len(self._queue) == 1:  # later ones need not hurry the report
                self._news.set()
        try:
            while not turn.wait(min(1.0, patience.remaining())):
                pass
            patience.remaining()
        except BaseException:
            with self._lock:
                if turn.is_set():
                    self._in_flight -= 1
                    self._admit()
                else:
                    self._queue.remove(turn)
            raise

    def _leave(self, result: Result | None) -> None:
        with self._lock:
            self._in_flight -= 1
            if result is not None:
                self._results.append((time.monotonic(), result))
                self._heed(result)
                if result.kind != "answered":
                    asked = min(result.advice.retry_after or 0.0, self._longest_wait)
                    self._asked_until = max(self._asked_until, time.monotonic() + asked)
                    self._news.set()
            self._admit()
            if self._queue and self._starts_left == 0:
                self._news.set()

    def _heed(self, result: Result) -> None:
        """Start no more requests than the provider says are left, until the next grant knows more. With the lock."""
        for budget in result.advice.budgets:
            if budget.remaining < self._grant.places:
                left = self._starts_left
                self._starts_left = budget.remaining if left is None else min(left, budget.remaining)
                self._news.set()

    def _admit(self) -> None:
        """Let those start who may. Call it with the lock."""
        if time.monotonic() < max(self._paused_until, self._asked_until):
            return
        while self._queue and self._in_flight < self._grant.places and self._starts_left != 0:
            self._queue.popleft().set()
            self._in_flight += 1
            self._started += 1
            if self._starts_left is not None:
                self._starts_left -= 1

    # Reporting -------------------------------------------------------------------------------------------------------

    def _report_on(self) -> None:
        """Exchange reports for grants for as long as there are requests."""
        idle_since: float | None = None
        while True:
            with self._lock:
                self._news.clear()
                now = time.monotonic()
                results = tuple(replace(result, age=now - ended) for ended, result in self._results)
                report = Report(self._in_flight, len(self._queue), self._started, results)
                self._started, self._results = 0, []
            grant = self._exchanged(report)
            now = time.monotonic()
            with self._lock:
                self._take(grant, now)
                if self._in_flight or self._queue or self._results:
                    idle_since = None
                elif idle_since is None:
                    idle_since = now
                elif now - idle_since > _IDLE_SECONDS:
                    self._reporter, self._grant = None, Grant(0)
                    return
                pause = max(self._paused_until, self._asked_until) - now
            time.sleep(_LEAST_REPORT_SECONDS)
            self._news.wait(min(pause, _REPORT_SECONDS) if pause > 0 else _REPORT_SECONDS)

    def _take(self, grant: Grant, now: float) -> None:
        self._grant = grant
        # What started while the grant was on its way is not in it.
        self._starts_left = None if grant.starts is None else max(0, grant.starts - self._started)
        self._paused_until = now + grant.pause_seconds
        self._admit()

    def _exchanged(self, report: Report) -> Grant:
        now = time.monotonic()
        if self._exchange is not None and now >= self._shared_again_at:
            try:
                grant = self._exchange(report)
                self._shared_again_at = 0.0
                return grant
            except Exception as error:
                _log.warning("The places towards an endpoint are not shared for now: %s", error)
                if not self._shared_again_at:  # the first failure: go on with what there is
                    self._own = self._shares_of_own(max(1, self._grant.places))
                self._shared_again_at = time.monotonic() + _AGAIN_SECONDS
        return self._own.report("own", report, now)

    def _shares_of_own(self, bound: int) -> Shares:
        return Shares(Controller(bound, self._longest_wait, NOTICE_SECONDS))
