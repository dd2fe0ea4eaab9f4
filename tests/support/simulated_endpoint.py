"""A simulated endpoint with limits, asked by as many requests as a controller lets start. No clock, no I/O."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from rollout_service.pacing.advice import Advice, Budget
from rollout_service.pacing.controller import Controller, Result

REFUSAL_SECONDS = 0.05


@dataclass
class Endpoint:
    """An endpoint that never has enough of limits: each that is given is kept."""

    latency: float = 0.5
    places: float = float("inf")
    """Most requests in flight."""
    quota: int | None = None
    """Most requests a window."""
    window: float = 6.0
    token_quota: int | None = None
    """Most tokens a window."""
    tokens: int = 100
    """Tokens of a request."""
    says_when: bool = True
    """Refusals have a Retry-After."""
    says_what_is_left: bool = False
    """Answers have rate headers."""
    is_out: Callable[[float], bool] = lambda now: False
    """Whether every request fails at this time."""
    in_flight: int = 0
    used: int = 0
    begun: float = 0.0

    def answer(self, now: float) -> Result:
        """How a request ends that starts now."""
        if now - self.begun >= self.window:
            self.begun, self.used = now - (now - self.begun) % self.window, 0
        if self.is_out(now):
            return Result("failed", REFUSAL_SECONDS)
        spent = self.quota is not None and self.used >= self.quota
        spent |= self.token_quota is not None and (self.used + 1) * self.tokens > self.token_quota
        left = self.begun + self.window - now
        if spent or self.in_flight >= self.places:
            wait = (left if spent else 1.0) - REFUSAL_SECONDS
            return Result("refused", REFUSAL_SECONDS, Advice(max(0.0, wait)) if self.says_when else Advice())
        self.used += 1
        budgets = []
        if self.says_what_is_left:
            left = max(0.0, left - self.latency)
            if self.quota is not None:
                budgets.append(Budget("requests", self.quota - self.used, self.quota, left))
            if self.token_quota is not None:
                rest = self.token_quota - self.used * self.tokens
                budgets.append(Budget("tokens", rest, self.token_quota, left))
        return Result("answered", self.latency, Advice(None, tuple(budgets)), self.tokens)


@dataclass
class Run:
    """What came of a simulation."""

    answered: list[float] = field(default_factory=list)
    """When each request was answered."""
    refused: list[float] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    """The limit after each change, with its time."""
    in_flight: list[int] = field(default_factory=list)

    def rate(self, start: float, end: float) -> float:
        """Answers per second between two times."""
        return sum(start <= at < end for at in self.answered) / (end - start)


def simulate(controller: Controller, endpoint: Endpoint, seconds: float, demand: int = 10_000) -> Run:
    """Have at most `demand` requests in flight, and as many as the controller allows, for so many seconds."""
    run, now, order = Run(), 0.0, itertools.count()
    flights: list[tuple[float, int, Result]] = []
    while now < seconds:
        while len(flights) < min(controller.limit, demand) and not controller.wait(now):
            left = controller.startable(now)
            if left is not None and left < 1:
                break
            controller.started(1, now)
            result = endpoint.answer(now)
            endpoint.in_flight += result.kind == "answered"
            heapq.heappush(flights, (now + result.seconds, next(order), result))
        run.in_flight.append(len(flights))
        waits = [controller.wait(now), controller.refills_in(now)]
        wakes = [now + wait for wait in waits if wait > 0]
        ends = [flights[0][0]] if flights else []
        if not wakes + ends:
            raise AssertionError("it waits for nothing")
        now = min(wakes + ends) + 1e-9
        while flights and flights[0][0] <= now:
            _, _, result = heapq.heappop(flights)
            endpoint.in_flight -= result.kind == "answered"
            controller.ended(result, len(flights) + 1, now)
            (run.answered if result.kind == "answered" else run.refused).append(now)
            run.limits.append((now, controller.limit))
    return run
