"""A real HTTP server that speaks OpenAI's `/v1/chat/completions` and misbehaves on schedule.

Three parts, each a plain callable. A *brain* writes the assistant's message from messages and tools, as a model would.
A *behaviour* turns one exchange into an HTTP answer: `ok` sends what the brain wrote, every other one goes wrong in its
own way. A *schedule* picks the behaviour of each request. The server runs in a thread of its own, and keeps every
request.

Brains and behaviours hold no state of a conversation: requests are repeated, and conversations overlap.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import email.utils
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from rollout_service.tau2 import compat, gold

Message = dict[str, Any]
Brain = Callable[[list[Message], list[dict[str, Any]]], Message]


@dataclass(slots=True)
class Request:
    """One request as it arrived, and what became of it."""

    number: int
    """Order of arrival, from 0."""
    arrived: float
    """`time.monotonic()`."""
    headers: dict[str, str]
    body: dict[str, Any]
    usage: dict[str, int] | None = None
    """What the answer said was used; None when the answer said nothing of it."""

    @property
    def key(self) -> str:
        """The key that the client sent."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request while it is answered."""

    request: Request
    http: web.Request
    brain: Brain
    closing: asyncio.Event
    """Set when the server stops."""

    def reply(self) -> Message:
        """What the brain says."""
        return self.brain(self.request.body["messages"], self.request.body.get("tools") or [])

    def completion(self, message: Message, finish_reason: str | None = None) -> dict[str, Any]:
        """The body of a successful answer that holds `message`."""
        body = self.request.body
        prompt = sum(3 + len(str(item.get("content") or "")) // 4 for item in body["messages"])
        sampled = 1 + len(json.dumps(message)) // 4
        self.request.usage = {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}
        reason = finish_reason or ("tool_calls" if message.get("tool_calls") else "stop")
        whole = {"role": "assistant", "content": None, "refusal": None, **message}
        return {
            "id": f"chatcmpl-{self.request.number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": whole, "logprobs": None, "finish_reason": reason}],
            "usage": self.request.usage,
        }

    def error(self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
        """An error answer. It repeats the caller's key, as careless servers do."""
        text = f"{message} (your key is {self.request.key})"
        error = {"message": text, "type": code, "param": None, "code": code}
        return web.json_response({"error": error}, status=status, headers=headers)


Behaviour = Callable[[Exchange], Awaitable[web.StreamResponse]]
Schedule = Callable[[Request], Behaviour]


# Behaviours ----------------------------------------------------------------------------------------------------------


async def ok(exchange: Exchange) -> web.StreamResponse:
    return web.json_response(exchange.completion(exchange.reply()))


async def empty(exchange: Exchange) -> web.StreamResponse:
    return web.json_response(exchange.completion({"content": " \n"}))


async def refusal(exchange: Exchange) -> web.StreamResponse:
    message = {"content": "I am sorry, I cannot.", "refusal": "I am sorry, I cannot."}
    return web.json_response(exchange.completion(message))


async def content_filter(exchange: Exchange) -> web.StreamResponse:
    return web.json_response(exchange.completion({"content": "My order is"}, "content_filter"))


async def malformed_tool_call(exchange: Exchange) -> web.StreamResponse:
    call = {"id": "call_broken", "type": "function", "function": {"name": "toggle_data", "arguments": '{"on": tru'}}
    return web.json_response(exchange.completion({"tool_calls": [call]}))


async def arguments_not_an_object(exchange: Exchange) -> web.StreamResponse:
    call = {"id": "call_list", "type": "function", "function": {"name": "toggle_data", "arguments": "[1, 2]"}}
    return web.json_response(exchange.completion({"tool_calls": [call]}))


async def lone_surrogate(exchange: Exchange) -> web.StreamResponse:
    return web.json_response(exchange.completion({"content": "Half an emoji: \ud83d"}))


async def truncated(exchange: Exchange) -> web.StreamResponse:
    """Promises more bytes than it sends, then closes the connection."""
    body = json.dumps(exchange.completion(exchange.reply())).encode()
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(exchange.http)
    await response.write(body[: len(body) // 2])
    assert exchange.http.transport is not None
    exchange.http.transport.close()
    return response


async def cut_json(exchange: Exchange) -> web.StreamResponse:
    """A whole HTTP answer with half a JSON text in it."""
    body = json.dumps(exchange.completion(exchange.reply())).encode()
    return web.Response(body=body[: len(body) // 2], content_type="application/json")


async def web_page(exchange: Exchange) -> web.StreamResponse:
    """What a proxy in between shows when it is unwell, with status 200."""
    return web.Response(text="<html><body>Please wait…</body></html>", content_type="text/html")


async def hang(exchange: Exchange) -> web.StreamResponse:
    """Never answers; the client has to give up."""
    await exchange.closing.wait()
    return web.Response(status=503)


async def drip(exchange: Exchange) -> web.StreamResponse:
    """Answers with white space, a byte at a time, for ever: no pause is long enough for a timeout between bytes."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(exchange.http)
    with contextlib.suppress(ConnectionError):
        while not exchange.closing.is_set():
            await response.write(b" ")
            await asyncio.sleep(0.05)
    return response


async def unauthorized(exchange: Exchange) -> web.StreamResponse:
    return exchange.error(401, "Incorrect API key provided.", "invalid_api_key")


async def forbidden(exchange: Exchange) -> web.StreamResponse:
    return exchange.error(403, "This key may not use this model.", "model_not_allowed")


async def context_too_long(exchange: Exchange) -> web.StreamResponse:
    text = "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens."
    return exchange.error(400, text, "context_length_exceeded")


def failing(status: int, headers: Mapping[str, str] | None = None) -> Behaviour:
    """Answers with an HTTP error."""

    async def fail(exchange: Exchange) -> web.StreamResponse:
        return exchange.error(status, "Something went wrong.", "server_error", headers)

    fail.__name__ = f"status {status}"
    return fail


def rate_limited(seconds: float, *, as_date: bool = False) -> Behaviour:
    """429, with the time to wait in seconds or as an HTTP date (whole seconds, rounded up)."""

    async def limit(exchange: Exchange) -> web.StreamResponse:
        date = email.utils.formatdate(int(time.time() + seconds) + 1, usegmt=True)
        headers = {"Retry-After": date if as_date else f"{seconds:g}"}
        return exchange.error(429, "Rate limit reached.", "rate_limit_exceeded", headers)

    limit.__name__ = f"wait {seconds:g} s"
    return limit


def together(count: int) -> Behaviour:
    """Answers nobody before `count` requests wait at the same time."""
    waiting: list[asyncio.Event] = []

    async def gather(exchange: Exchange) -> web.StreamResponse:
        everyone = asyncio.Event()
        waiting.append(everyone)
        if len(waiting) >= count:
            for event in waiting:
                event.set()
        await everyone.wait()
        return await ok(exchange)

    return gather


# Schedules -----------------------------------------------------------------------------------------------------------


def always(behaviour: Behaviour) -> Schedule:
    return lambda request: behaviour


CLEAN = always(ok)


def at(numbers: Iterable[int], behaviour: Behaviour) -> Schedule:
    """`behaviour` for the requests of these numbers, `ok` for the others."""
    chosen = set(numbers)
    return lambda request: behaviour if request.number in chosen else ok


# Brains --------------------------------------------------------------------------------------------------------------


def finder(tasks: Sequence[compat.Task]) -> Callable[[str], int]:
    """Finds the position of the task whose scenario a user's system prompt holds."""
    scenarios = [str(task.user_scenario) for task in tasks]
    assert len(set(scenarios)) == len(scenarios), "two of the tasks have the same scenario"

    def find(prompt: str) -> int:
        # A task with a persona holds the whole scenario of the same task without one: the longest match is the task's.
        matching = [position for position, scenario in enumerate(scenarios) if scenario in prompt]
        return max(matching, key=lambda position: len(scenarios[position]))

    return find


def gold_user(tasks: Sequence[compat.Task]) -> Brain:
    """Plays the user's side of `rollout_service.tau2.gold` for these tasks; the scenario in the system prompt says
    which.

    What comes next follows from the messages alone: each thing that the agent says (API role `user`: τ² flips the
    roles) opens the next run of the user's own actions, and the calls made since then are the position in the run.
    """
    find = finder(tasks)

    def brain(messages: list[Message], tools: list[dict[str, Any]]) -> Message:
        task = tasks[find(messages[0]["content"])]
        spoken = [index for index, message in enumerate(messages) if message["role"] == "user"]
        if len(spoken) == 1:
            return {"content": gold.opening(task)}
        heard = str(messages[spoken[-1]]["content"])
        if gold.CHATTER in heard:
            return {"content": "Okay."}
        run = sum(gold.CHATTER not in str(messages[index]["content"]) for index in spoken[1:]) - 1
        blocks = gold.user_blocks(task)
        if run >= len(blocks):
            return {"content": compat.STOP}
        made = sum(message["role"] == "tool" for message in messages[spoken[-1] :])
        if made == len(blocks[run]):
            return {"content": "Done."}
        action = blocks[run][made]
        assert action.name in {tool["function"]["name"] for tool in tools}, f"the user has no tool {action.name}"
        function = {"name": action.name, "arguments": json.dumps(action.arguments)}
        return {"tool_calls": [{"id": f"call_{run}_{made}", "type": "function", "function": function}]}

    return brain


def talker(turns: int) -> Brain:
    """Asks the agent to go on, whatever it says, and stops when it has said `turns` things."""

    def brain(messages: list[Message], tools: list[dict[str, Any]]) -> Message:
        heard = sum(message["role"] == "user" for message in messages) - 1  # the first is τ²'s own greeting
        return {"content": compat.STOP if heard >= turns else f"Please go on, this was number {heard}."}

    return brain


def judge(verdict: Callable[[str], bool] = lambda outcome: True, *, omit: int = 0) -> Brain:
    """Grades each expected outcome of an NL-assertion prompt, but forgets the first `omit` of them."""

    def brain(messages: list[Message], tools: list[dict[str, Any]]) -> Message:
        outcomes = ast.literal_eval(messages[-1]["content"].rpartition("expectedOutcomes:")[2].strip())
        graded = [
            {"expectedOutcome": outcome, "reasoning": "as seen", "metExpectation": verdict(outcome)}
            for outcome in outcomes[omit:]
        ]
        return {"content": json.dumps({"results": graded})}

    return brain


def reviewer(*errors: Mapping[str, Any]) -> Brain:
    """Reviews a user simulator: says that it made these errors."""

    def brain(messages: list[Message], tools: list[dict[str, Any]]) -> Message:
        assert "<User Simulator Guidelines>" in messages[0]["content"]
        assert "<User Instructions>" in messages[1]["content"]
        review = {"errors": [{"reasoning": "as seen", **error} for error in errors], "summary": "read"}
        return {"content": f"```json\n{json.dumps(review)}\n```"}

    return brain


# The server ----------------------------------------------------------------------------------------------------------


class OpenAIServer:
    """Runs while the `with` block does."""

    def __init__(self, brain: Brain, schedule: Schedule = CLEAN) -> None:
        self._brain = brain
        self._schedule = schedule
        self.requests: list[Request] = []
        """In order of arrival."""
        self.base_url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)

    async def _start(self) -> None:
        self._closing = asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        port = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{port}/v1"

    async def _stop(self) -> None:
        self._closing.set()
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        body = await http.json()
        request = Request(len(self.requests), arrived, dict(http.headers), body)
        self.requests.append(request)
        return await self._schedule(request)(Exchange(request, http, self._brain, self._closing))
