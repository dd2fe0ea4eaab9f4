"""The user simulator's endpoint, and how it fails: a local server that speaks OpenAI's protocol.

Invariant: which request fails follows from the schedule's seed and the request's number. Only answers that the service
can tell from a user's words are given, so an episode that ends plays the calm run's conversation.
"""

from __future__ import annotations

import random
import time
from collections import deque

from rollout_service.tau2 import tasks
from tests.chaos.schedule import DOMAINS, Fault, Schedule
from tests.support import openai_server as server
from tests.support.openai_server import Behaviour, OpenAIServer, Request

_BEHAVIOURS: dict[str, Behaviour] = {
    "status 500": server.failing(500),
    "status 503": server.failing(503),
    "rate limited": server.rate_limited(0.2),
    "empty": server.empty,
    "truncated": server.truncated,
    "cut_json": server.cut_json,
    "web_page": server.web_page,
    "hang": server.hang,
    "refusal": server.refusal,
    "malformed_tool_call": server.malformed_tool_call,
}

_NOISE = ("status 500", "status 503", "rate limited", "truncated", "empty")
"""What fails in passing: quick, and mended by asking again."""


class UserEndpoint:
    """Plays the user of every task of `DOMAINS`, and fails as the schedule of the moment says."""

    def __init__(self) -> None:
        played = [tasks.get(task) for domain, _ in DOMAINS for task in tasks.references(domain, "base")]
        # Tasks that differ in the agent's part only: the user plays the same in them, having no actions of its own.
        by_scenario = {str(task.user_scenario): task for task in played}
        self._server = OpenAIServer(server.gold_user(list(by_scenario.values())), self._choose)
        self._noise, self._seed = 0.0, ""
        self._burst: deque[Behaviour] = deque()
        self._outage, self._until = server.ok, 0.0
        self.failed = 0
        """Requests that failed since `begin`."""

    def __enter__(self) -> UserEndpoint:
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(None, None, None)

    @property
    def url(self) -> str:
        """Base URL for `user.base_url`."""
        return self._server.base_url

    def begin(self, schedule: Schedule) -> None:
        """Fail from now on as this schedule says."""
        self._noise, self._seed, self.failed = schedule.noise, schedule.name, 0
        self._burst.clear()
        self._until = 0.0
        self._server.requests.clear()

    def inject(self, fault: Fault) -> None:
        """Let the next requests fail, or all for some time."""
        if fault.seconds is not None:
            self._outage, self._until = _BEHAVIOURS[fault.how], time.monotonic() + fault.seconds
        self._burst.extend([_BEHAVIOURS[fault.how]] * fault.requests)

    def _choose(self, request: Request) -> Behaviour:
        rng = random.Random(f"user:{self._seed}:{request.number}")
        if time.monotonic() < self._until:
            self.failed += 1
            return self._outage
        if self._burst:
            self.failed += 1
            return self._burst.popleft()
        if rng.random() < self._noise:
            self.failed += 1
            return _BEHAVIOURS[rng.choice(_NOISE)]
        return server.ok
