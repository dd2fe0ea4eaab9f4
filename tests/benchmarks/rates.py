"""How much of what a user's endpoint allows is used? A real server that limits, starts slowly and goes down for 60 s.

The phases follow each other in one service, so that the controller has to notice each change. The limits are those of
a provider, with windows of 6 seconds instead of a minute. 64 slots wait for about 16 places. What is allowed is counted
by the server: the whole quota of each window, or all places all the time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import ray
from aiohttp import web
from rich.console import Console
from rich.table import Table

from rollout_service.client import RolloutClient
from rollout_service.cluster import pacer_name
from rollout_service.record.trajectory import Outcome
from tests.benchmarks.measure import Row, show
from tests.support.episodes import settings
from tests.support.openai_server import Behaviour, Exchange, OpenAIServer, Request, failing, talker

EPISODES = 140
ACTORS, SLOTS = 2, 32
WINDOW = 6.0
QUOTA = 36
"""Requests a window."""
TOKENS = 24_000
"""Tokens a window."""
PLACES = 16
LATENCY = 3.0
WARM_UP = 6.0
"""Seconds of each phase that do not count."""
TRACE_SECONDS = 10


@dataclass
class Phase:
    """What the server does for some time."""

    name: str
    seconds: float
    answer: Callable[[Server, Exchange, float], Behaviour | None]
    """How it treats a request: None: by answering it."""
    allowed: Callable[[float], float]
    """What it allows in so many seconds after the warm-up: requests, or tokens."""
    in_tokens: bool = False
    used: float = 0.0
    answers: int = 0
    refusals: int = 0


@dataclass
class Server:
    """The phases, and where the server is in them. Everything happens in the server's one event loop."""

    phases: list[Phase]
    began: float = 0.0
    window: int = -1
    spent: float = 0.0
    """Requests or tokens of this window."""
    in_flight: int = 0
    log: list[tuple[float, bool]] = field(default_factory=list)

    def phase(self, now: float) -> tuple[Phase | None, float]:
        """The phase at this time, and how old it is; None: all are over."""
        age = now - self.began
        for phase in self.phases:
            if age < phase.seconds:
                return phase, age
            age -= phase.seconds
        return None, age

    def schedule(self, request: Request) -> Behaviour:
        return self._answer

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        now = time.monotonic()
        self.began = self.began or now
        phase, age = self.phase(now)
        if (window := int(age / WINDOW)) != self.window:
            self.window, self.spent = window, 0.0
        refusal = phase.answer(self, exchange, age) if phase else None
        if phase is not None and refusal is not None:
            phase.refusals += 1
            return await refusal(exchange)
        body = exchange.completion(exchange.reply())
        cost = body["usage"]["total_tokens"] if phase and phase.in_tokens else 1
        self.spent += cost
        headers = {}
        if phase and phase.in_tokens:
            left = {"limit": TOKENS, "remaining": max(0, int(TOKENS - self.spent)), "reset": f"{_left(age):.3f}s"}
            headers = {f"x-ratelimit-{name}-tokens": str(value) for name, value in left.items()}
        self.in_flight += 1
        await asyncio.sleep(LATENCY)
        self.in_flight -= 1
        if phase is not None:
            phase.answers += 1
            phase.used += cost if age >= WARM_UP else 0
        return web.json_response(body, headers=headers)


def _left(age: float) -> float:
    return WINDOW - age % WINDOW


def _too_many(seconds: float) -> Behaviour:
    return failing(429, {"Retry-After": f"{seconds:.2f}"})


def requests_per_window(server: Server, exchange: Exchange, age: float) -> Behaviour | None:
    return _too_many(_left(age)) if server.spent >= QUOTA else None


def tokens_per_window(server: Server, exchange: Exchange, age: float) -> Behaviour | None:
    return _too_many(_left(age)) if server.spent >= TOKENS else None


def slow_start(server: Server, exchange: Exchange, age: float) -> Behaviour | None:
    return failing(503) if server.in_flight >= _started_places(age) else None


def _started_places(age: float) -> float:
    """One place more every 2 seconds, up to all of them."""
    return min(PLACES, 1 + age // 2)


def outage(server: Server, exchange: Exchange, age: float) -> Behaviour | None:
    return failing(503)


def places(server: Server, exchange: Exchange, age: float) -> Behaviour | None:
    return failing(429, {"Retry-After": "1"}) if server.in_flight >= PLACES else None


def phases() -> list[Phase]:
    def quotas(of: float) -> Callable[[float], float]:
        return lambda seconds: seconds / WINDOW * of

    def starting(seconds: float) -> float:
        return sum(_started_places(WARM_UP + at / 10) for at in range(int(seconds * 10))) / 10 / LATENCY

    return [
        Phase(f"{QUOTA} requests per {WINDOW:g} s, Retry-After", 54, requests_per_window, quotas(QUOTA)),
        Phase(f"{TOKENS:,} tokens per {WINDOW:g} s, rate headers", 54, tokens_per_window, quotas(TOKENS), True),
        Phase(f"slow start: 1 to {PLACES} requests in flight, 503", 54, slow_start, starting),
        Phase("outage of 60 s, 503", 60, outage, lambda seconds: 0.0),
        Phase(f"after it: {PLACES} requests in flight, 429", 54, places, lambda seconds: seconds * PLACES / LATENCY),
    ]


def run() -> bool:
    """Measure, and print the controller's trace."""
    server = Server(phases())
    trace: list[dict[str, float]] = []
    with OpenAIServer(talker(9), server.schedule) as api:
        config = settings(
            tasks__domain="mock",
            user__model="openai/some-model",
            user__base_url=api.base_url,
            service__actors=ACTORS,
            service__slots=SLOTS,
            service__max_buffered_groups=EPISODES,
        )
        with RolloutClient(config=config) as client:
            while client.status()["actors"] < ACTORS:
                time.sleep(0.2)
            is_over = threading.Event()
            follower = threading.Thread(target=_follow, args=(server, config.service.name, trace, is_over))
            follower.start()
            batch = client.collect(EPISODES, seed=0, progress=False)
            is_over.set()
            follower.join()
    _print(trace)
    if "--json" in sys.argv:
        print(json.dumps(trace))
    lost = sum(trajectory.outcome is Outcome.ABORTED for trajectory in batch)
    again = sum(trajectory.attempt > 1 for trajectory in batch)
    rows = [_row(phase) for phase in server.phases]
    rows.append(Row("episodes lost", str(lost), f"{EPISODES} episodes", "", "0", lost == 0))
    rows.append(Row("episodes made again", str(again), f"{EPISODES} episodes", "", "", True))
    return show(f"A user's endpoint with limits: {ACTORS * SLOTS} slots", rows)


def _row(phase: Phase) -> Row:
    allowed = phase.allowed(phase.seconds - WARM_UP)
    share = phase.used / allowed if allowed else 0.0
    unit = "tokens" if phase.in_tokens else "requests"
    return Row(
        f"{phase.name} ({phase.answers} answers, {phase.refusals} refusals)",
        f"{phase.used:,.0f} {unit}" if allowed else "–",
        f"{allowed:,.0f} allowed" if allowed else "nothing allowed",
        f"{share:.3f}" if allowed else "",
        "≥ 0.9" if allowed else "",
        share >= 0.9 or not allowed,
    )


def _follow(server: Server, service: str, trace: list[dict[str, float]], is_over: threading.Event) -> None:
    pacer = ray.get_actor(pacer_name(service), namespace="rollout_service")
    while not is_over.wait(1.0):
        if server.began:
            status = ray.get(pacer.status.remote())["user"]
            trace.append({"seconds": round(time.monotonic() - server.began, 1), **status})


def _print(trace: list[dict[str, float]]) -> None:
    table = Table("s", "limit", "in flight", "waiting", "answers", "refusals", "pause", title="The controller's trace")
    last = {"answered": 0.0, "refused": 0.0}
    for now in trace[::TRACE_SECONDS]:
        new = [f"{now[name] - last[name]:.0f}" for name in ("answered", "refused")]
        cells = [f"{now[name]:.0f}" for name in ("seconds", "limit", "in_flight", "waiting")]
        table.add_row(*cells, *new, f"{now['paused_seconds']:.1f}")
        last = now
    Console(width=100).print(table)
