"""Endpoints of fixed latency that play both sides of a conversation, and what they see of whoever asks them.

One HTTP server speaks `/v1/chat/completions` as the model `agent` and the model `user`. Both play the gold actions of
their task, so that conversations end with reward 1. An answer takes 0.5 to 1.5 s, which follows from the task, the side
and the position in the conversation alone. The server counts conversations the same way for every runner: one is in
progress from the arrival of its user's first request to the answer with which the user ends it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from rollout_service.config import Script
from rollout_service.tau2 import compat, gold
from tests.support.openai_server import Behaviour, Exchange, Message, Request, finder, gold_user

LATENCY = {"distribution": "uniform", "mean": 1.0, "spread": 0.5}
SCRIPT = {"chatter": 1.0}
"""The agent says something idle before each action, as real agents do: it makes a conversation longer."""

_NUMBER = re.compile(r"My case has the number (\d+)\.")


@dataclass(frozen=True)
class Seen:
    """What the server saw of a runner in a stretch of time."""

    finished: int
    """Conversations that ended in it."""
    busy_seconds: float
    """Seconds of conversations in progress, all together."""


@dataclass
class Endpoints:
    """Both models. Everything happens in the server's one event loop."""

    tasks: Sequence[compat.Task]
    began: list[float] = field(default_factory=list)
    """When each conversation began, by `time.monotonic()`."""
    ended: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._user = gold_user(self.tasks)
        script = Script(**SCRIPT)
        steps = [gold.policy_steps(task, "llm_agent", script, random.Random(0)) for task in self.tasks]
        self._agent_messages = [[_message(step, turn) for turn, step in enumerate(each)] for each in steps]
        self._find = finder(self.tasks)

    def schedule(self, request: Request) -> Behaviour:
        """For `OpenAIServer`."""
        return self._answer

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        play = self._play_agent if request.body["model"] == "agent" else self._play_user
        reply, key = play(request.arrived, request.body["messages"], request.body.get("tools") or [])
        body = exchange.completion(reply)
        request.body = {}  # the server keeps each request
        rest = random.Random(key).uniform(0.5, 1.5) - (time.monotonic() - request.arrived)
        await asyncio.sleep(rest)
        if reply.get("content") == compat.STOP:
            self.ended.append(time.monotonic())
        return web.json_response(body)

    def _play_agent(self, arrived: float, messages: list[Message], tools: list[Any]) -> tuple[Message, str]:
        spoken = [message["role"] for message in messages]
        opening = messages[spoken.index("user")]["content"]
        number = int(_NUMBER.findall(opening)[-1])
        turn = spoken.count("assistant") - 1  # the first is τ²'s own greeting
        turns = self._agent_messages[number]
        return turns[min(turn, len(turns) - 1)], f"agent:{number}:{turn}"

    def _play_user(self, arrived: float, messages: list[Message], tools: list[Any]) -> tuple[Message, str]:
        reply = self._user(messages, tools)
        number = self._find(messages[0]["content"])
        if sum(message["role"] == "user" for message in messages) == 1:
            self.began.append(arrived)
            reply = {"content": f"{reply['content']} My case has the number {number}."}
        return reply, f"user:{number}:{len(messages)}"

    def seen(self, start: float, end: float) -> Seen:
        """What there was between two times."""
        began = [min(max(at, start), end) for at in self.began]
        ended = [min(max(at, start), end) for at in self.ended]
        open_for = sum(end - at for at in began) - sum(end - at for at in ended)
        return Seen(sum(start < at <= end for at in self.ended), open_for)


def _message(step: gold.Step, turn: int) -> Message:
    calls = [
        {"id": f"call_{turn}_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(step.calls)
    ]
    return {"content": step.text or None, "tool_calls": calls} if calls else {"content": step.text}
