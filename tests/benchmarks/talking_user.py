"""A user simulator behind a real API, who talks for a number of turns and counts those of the policy.

Invariant: what the user says depends on the episode's seed alone. So services that are given the same seed play the
same episodes, but for the policy's words. Lengths differ from episode to episode, as real ones do: with equal ones, all
episodes that began together would stay in step.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from rollout_service.tau2 import compat
from tests.support.openai_server import Behaviour, Exchange, Message, OpenAIServer, Request, talker

_WORDS = ["order", "refund", "address", "card", "item", "size", "colour", "street", "delivery", "again", "please"]


@dataclass
class TalkingUser:
    """Runs while the `with` block does. All numbers are means: each episode draws its own, between 0.5 and 1.5 times
    as large."""

    turns: int
    """Turns of the policy, after which the user stops."""
    words: int
    """Of an answer."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Until an answer, by the model's name; it may change at any time. Each answer draws its own."""
    heard: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """When each turn of the policy had come, by the model's name, by `time.monotonic()`."""

    def __enter__(self) -> Self:
        self._server = OpenAIServer(talker(0), self._schedule)  # the schedule's behaviour says all
        self._server.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.__exit__(*error)

    def settings(self, name: str) -> dict[str, Any]:
        """Settings of a service that calls the user by this name."""
        return {"user.model": f"openai/{name}", "user.base_url": self._server.base_url}

    def turns_between(self, name: str, begun: float, ended: float) -> int:
        """Number of the policy's turns that came in this time."""
        return sum(begun <= moment < ended for moment in self.heard[name])

    def _schedule(self, request: Request) -> Behaviour:
        return self._answer

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        name, seed = exchange.request.body["model"], exchange.request.body["seed"]
        heard = sum(message["role"] == "user" for message in exchange.request.body["messages"]) - 1  # τ² greets first
        if heard:
            self.heard[name].append(time.monotonic())
        chance = random.Random(f"{seed} {heard}")
        await asyncio.sleep(self.seconds.get(name, 0.0) * chance.uniform(0.5, 1.5))
        return web.json_response(exchange.completion(self._said(seed, heard, chance)))

    def _said(self, seed: int, heard: int, chance: random.Random) -> Message:
        if heard >= max(1, round(self.turns * random.Random(seed).uniform(0.5, 1.5))):
            return {"content": compat.STOP}
        return {"content": " ".join(chance.choices(_WORDS, k=round(self.words * chance.uniform(0.5, 1.5))))}
