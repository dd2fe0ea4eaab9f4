"""Controller: how many requests may be in flight towards one endpoint.

Invariant: the limit is never below 1 and never above the bound. It grows while answers come, and halves when the
endpoint refuses (429), fails (5xx) or keeps silent (a timeout): once for all requests that were in flight at the time,
because they all met the same overload. It knows no clock and no I/O: the time is handed in, in seconds of a clock that
never goes back.

The controller remembers the number in flight that was refused. Below it, the limit doubles each round trip; at it, the
limit stays for a number of round trips and then probes upward, first by 1, then by 2, 4, … A probe that fails at once
makes the next one wait twice as long. So a limit on the number in flight is used almost whole, and one that was raised
is soon found.

Limits per time are kept by what the provider says of them: nobody sends anything before the end of a `Retry-After`, and
requests stop when the requests or tokens that are left, by the headers, are used up.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from rollout_service.pacing.advice import Advice, Budget, Unit

FIRST_LIMIT = 4
"""Requests that may be in flight before the endpoint has answered any."""

_LONGEST_PATIENCE = 32
"""Most round trips between two probes."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
"""Seconds without any request after failures without an answer between them; the time doubles. The longest one is what
may pass before the end of an outage is noticed. One request a second from the whole service is no burden."""

_OUTAGE = 5
"""Round trips that fail in a row before it is taken for an outage, which says nothing about the limit."""

_FORGETTING = 0.99
"""What one answer leaves of the largest limit that is remembered."""

_LEAST_PERIOD = 1.0
"""Least seconds between two resets of a limit of which the provider says nothing new."""

_SMOOTHING = 0.1
"""Weight of the newest request in the mean number of tokens."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one request ended."""

    kind: Literal["answered", "refused", "failed"]
    """`answered`: the endpoint did its work, whatever it said; `refused`: it has a limit (429); `failed`: it answered
    with 5xx, or not in time."""
    seconds: float
    """From the request's start to its end."""
    advice: Advice = field(default_factory=Advice)
    tokens: int = 0
    """Tokens of prompt and answer; 0: not known."""
    age: float = 0.0
    """Seconds since it ended."""


@dataclass(slots=True)
class _Purse:
    """What is left of one of the provider's limits."""

    remaining: float
    limit: int | None
    resets_at: float
    period: float
    """Seconds from the next reset to the one after it, for as long as the provider says nothing new."""
    told_at: float
    """When the request started whose answer told it."""


class Controller:
    """The limit of one endpoint."""

    def __init__(self, bound: int, longest_wait: float = 60.0, notice_seconds: float = 0.0) -> None:
        """
        Args:
            bound: most requests in flight, at least 1.
            longest_wait: most seconds without a request that the provider can ask for.
            notice_seconds: how long it takes until everybody knows that the limit is lower. What starts in this time
                says nothing about the lower limit.
        """
        self._notice_seconds = notice_seconds
        self._bound = bound
        self._longest_wait = longest_wait
        self._limit = min(bound, FIRST_LIMIT)
        self._ceiling = bound
        """Most requests in flight that were not refused, as far as known."""
        self._best = 1.0
        """Largest limit of late."""
        self._held = 0
        """Answers since the limit reached the ceiling."""
        self._patience = self._patience_of_first_probe = 1
        """Round trips until the next probe."""
        self._step = 1
        """By how much the next probe raises the limit."""
        self._cut_at = -math.inf
        self._failures = 0
        """Round trips that failed since the last answer."""
        self._paused_until = -math.inf
        self._purses: dict[Unit, _Purse] = {}
        self._tokens = 0.0
        """Mean tokens of a request; 0: not known."""
        self._starts: deque[tuple[float, int]] = deque()
        self.answered = 0
        """Requests that were answered so far."""
        self.refused = 0
        """Requests that were refused or failed so far."""

    @property
    def limit(self) -> int:
        """Requests that may be in flight, once nothing pauses them."""
        return self._limit

    def wait(self, now: float) -> float:
        """Seconds until requests may start again; 0: they may start now."""
        return max(0.0, self._paused_until - now)

    def startable(self, now: float) -> int | None:
        """Requests that may start before the provider's own limits are used up. None: no such limit is known."""
        left = [self._left(unit, now) for unit in list(self._purses)]
        known = [count for count in left if count is not None]
        return min(known, default=None)

    def refills_in(self, now: float) -> float:
        """Seconds until a limit of the provider that is used up is reset; 0: none is."""
        empty = [purse.resets_at for unit, purse in self._purses.items() if self._left(unit, now) == 0]
        return max(0.0, max(empty, default=now) - now)

    def _left(self, unit: Unit, now: float) -> int | None:
        purse = self._purses[unit]
        cost = self._cost(unit)
        if now >= purse.resets_at:
            if purse.limit is None:
                return None
            purse.remaining = max(float(purse.limit), cost)  # at least one request, whatever it takes
            purse.resets_at, purse.told_at = now + purse.period, now
        return max(0, int(purse.remaining // cost))

    def _cost(self, unit: Unit) -> float:
        return max(1.0, self._tokens) if unit == "tokens" else 1.0

    def started(self, count: int, now: float) -> None:
        """Note that requests have started."""
        if not count:
            return
        self._starts.append((now, count))
        while self._starts[0][0] < now - 2 * self._longest_wait:
            self._starts.popleft()
        for unit, purse in self._purses.items():
            purse.remaining -= count * self._cost(unit)

    def ended(self, result: Result, in_flight: int, now: float) -> None:
        """Note that a request has ended.

        Args:
            in_flight: number of requests in flight before it ended, this one among them.
        """
        ended = now - result.age
        started = ended - result.seconds
        if result.tokens:
            weight = _SMOOTHING if self._tokens else 1.0
            self._tokens += weight * (result.tokens - self._tokens)
        for budget in result.advice.budgets:
            self._told(budget, started, ended)
        if result.kind == "answered":
            self.answered += 1
            self._recover()
            self._grow(in_flight)
            return
        self.refused += 1
        if result.advice.retry_after is not None:
            asked = min(result.advice.retry_after, self._longest_wait)
            self._paused_until = max(self._paused_until, ended + asked)
        if started >= self._cut_at + self._notice_seconds:
            self._cut(result.kind, in_flight, now)

    def _told(self, budget: Budget, started: float, ended: float) -> None:
        """Take what an answer says of a limit, unless the answer to a later request said it already."""
        known = self._purses.get(budget.unit)
        if known is not None and started < known.told_at:
            return
        later = sum(count for at, count in self._starts if at > started)
        remaining = budget.remaining - later * self._cost(budget.unit)
        reset = min(budget.reset_seconds, self._longest_wait)
        period = max(reset, _LEAST_PERIOD)
        self._purses[budget.unit] = _Purse(remaining, budget.limit, ended + reset, period, started)

    def _recover(self) -> None:
        """Take that the endpoint answers. After an outage, the limit need not grow from one."""
        if self._failures >= _OUTAGE:
            self._ceiling = max(self._ceiling, int(self._best))
            self._limit = max(self._limit, self._ceiling // 2)
        self._failures = 0
        self._best = max(float(self._limit), self._best * _FORGETTING)

    def _grow(self, in_flight: int) -> None:
        if 2 * in_flight < self._limit:  # a limit that is not used says nothing about what the endpoint bears
            return
        if self._limit < self._ceiling:
            self._limit += 1
            return
        self._held += 1
        if self._limit < self._bound and self._held >= self._patience * self._limit:
            self._held = 0
            self._limit = self._ceiling = min(self._bound, self._limit + self._step)
            self._step *= 2
            self._patience = 1

    def _cut(self, kind: Literal["answered", "refused", "failed"], in_flight: int, now: float) -> None:
        # An endpoint that fails now and then, whatever its load, must not bring the limit down to one.
        least = min(self._limit, FIRST_LIMIT) if kind == "failed" and not self._failures else 1
        if not self._failures:  # later ones say nothing about the number in flight
            self._ceiling = max(1, min(self._limit, in_flight) - 1)
            longer = min(_LONGEST_PATIENCE, 2 * self._patience_of_first_probe)
            self._patience = self._patience_of_first_probe = longer if self._step == 2 else 1
        else:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16))
            self._paused_until = max(self._paused_until, now + pause)
        self._limit = max(least, min(self._limit, in_flight) // 2)
        self._held, self._step = 0, 1
        self._failures += 1
        self._cut_at = now
