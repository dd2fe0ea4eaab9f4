"""What slime's router is to us: an HTTP server that speaks SGLang's `/generate`, with a real engine in this process.

It runs in a thread of its own and misbehaves on demand: a turn can be interrupted half-way, as slime's weight updates
do, held back, or refused. Answers have the shape of SGLang 0.5.15, which slime 0.3.1 pins: one weight version each.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from aiohttp import web

import rollout_service.adapters.slime.service as slime_service
from deploy.engines.scripted import ScriptedEngine
from rollout_service.chat.codec import ChatCodec
from rollout_service.config import Script
from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.policy.sglang_format import to_answer
from rollout_service.policy.sglang_request import read_request
from rollout_service.record.trajectory import TaskRef
from rollout_service.tau2 import gold, tasks

Engine = Callable[[Any, Sampling], Awaitable[Generation]]


def logprob(token: int) -> float:
    """What `scripted` says of a token: told by the token, so that a test sees whether the two are still together."""
    return -(1 + token % 7) / 8


def scripted(codec: ChatCodec, played: list[TaskRef]) -> Engine:
    """Plays the gold actions of these tasks, which must have different openings; the prompt alone says of which, and
    how far it is."""
    engine = ScriptedEngine(Script(), codec)
    openings = [(gold.opening(tasks.get(task)), task) for task in played]

    async def generate(prompt: Any, sampling: Sampling) -> Generation:
        text = codec.decode(prompt.tolist())
        (task,) = (task for opening, task in openings if opening in text)
        turn = text.count("<|im_start|>assistant") - 2  # τ²'s greeting and the turn that is asked for
        info = TurnInfo(task, turn=turn)
        whole = (await engine.generate(prompt, Sampling(max_new_tokens=1 << 20), info)).token_ids
        begun = next(k for k in range(len(whole) - 1, -1, -1) if k == 0 or np.array_equal(prompt[-k:], whole[:k]))
        tokens = whole[begun:][: sampling.max_new_tokens]
        return Generation(
            token_ids=tokens,
            logprobs=np.array([logprob(token) for token in tokens.tolist()], np.float32),
            weight_versions=np.zeros(len(tokens), np.int32),
            finish_reason="stop" if begun + len(tokens) == len(whole) else "length",
            prompt_tokens=len(prompt),
        )

    return generate


def _first(turn: Generation, n: int) -> Generation:
    """What an engine answers that was aborted after `n` tokens."""
    return Generation(turn.token_ids[:n], turn.logprobs[:n], turn.weight_versions[:n], "abort", turn.prompt_tokens)


@contextlib.contextmanager
def routing(codec: ChatCodec, played: list[TaskRef]) -> Iterator[Router]:
    """A router before a scripted engine; the service that slime's hooks start meanwhile ends with it."""
    with Router(scripted(codec, played)) as server:
        yield server
        slime_service.close()


class Router:
    """Runs while the `with` block does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.version = 1
        self.requests: list[dict[str, Any]] = []
        """Bodies of `/generate`, with the routing key, in order of arrival."""
        self.aborted: list[str] = []
        """Requests that were given up or aborted by the caller."""
        self.calm()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slime-router", daemon=True)

    def calm(self) -> None:
        """Behave well again, and forget what was."""
        self.interrupts: Callable[[int], bool] = lambda number: False
        """Whether the request of that number is interrupted half-way by a weight update."""
        self.refuses = False
        self.limit: int | None = None
        """Tokens that the server takes, prompt and turn together."""
        self.strips = False
        """Whether the stop token is taken off each turn."""
        self.seconds: Callable[[Any], float] = lambda prompt: 0.0
        """That the turn after this prompt takes."""
        self.running = 0
        self._stop = asyncio.Event()
        self.requests.clear()
        self.aborted.clear()

    def settled(self, seconds: float = 0.5) -> bool:
        """Whether nothing runs, and nothing comes for a while either. What was just aborted takes a moment to go."""
        time.sleep(0.1)
        before = len(self.requests)
        time.sleep(seconds)
        return self.running == 0 and len(self.requests) == before

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(120)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(120)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/abort_request", self._abort)
        app.router.add_get("/workers", self._workers)
        app.router.add_get("/v1/loads", self._loads)
        app.router.add_get("/server_info", self._server_info)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _workers(self, request: web.Request) -> web.Response:
        return web.json_response({"workers": [{"url": self.url, "id": "0"}]})

    async def _loads(self, request: web.Request) -> web.Response:
        return web.json_response({"loads": [{"num_running_reqs": self.running, "num_waiting_reqs": 0}]})

    async def _server_info(self, request: web.Request) -> web.Response:
        return web.json_response({"context_length": self.limit, "max_req_input_len": None})

    async def _abort(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("abort_all"):
            self._stop.set()
            self._stop = asyncio.Event()
        else:
            self.aborted.append(body["rid"])
        return web.json_response({})

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        number = len(self.requests)
        self.requests.append(body | {"key": request.headers.get("x-smg-routing-key")})
        if self.refuses:
            return web.json_response({"error": {"message": "no"}}, status=400)
        asked = read_request(await request.read(), 1)
        if refusal := self._too_long(len(asked.prompts[0]), asked.sampling.max_new_tokens):
            return web.json_response({"error": {"message": refusal}}, status=400)
        self.running += 1
        try:
            generation = await self.engine(asked.prompts[0], asked.sampling)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self.seconds(asked.prompts[0]))
                generation = _first(generation, 0)
        finally:
            self.running -= 1
        version = self.version
        if self.interrupts(number):
            generation = _first(generation, len(generation.token_ids) // 2)
            self.version += 1
        if self.strips and generation.finish_reason == "stop":
            generation = replace(_first(generation, len(generation.token_ids) - 1), finish_reason="stop")
        answer = to_answer(generation, body["rid"], 0.0)
        del answer["meta_info"]["weight_versions"]
        answer["meta_info"]["weight_version"] = str(version)
        return web.json_response(answer)

    def _too_long(self, prompt: int, room: int) -> str | None:
        """In SGLang's words."""
        if self.limit is not None and prompt >= self.limit:
            return f"The input ({prompt} tokens) is longer than the model's context length ({self.limit} tokens)."
        if self.limit is not None and prompt + room > self.limit:
            return (
                f"Requested token count exceeds the model's maximum context length of {self.limit} tokens. You "
                f"requested a total of {prompt + room} tokens: {prompt} tokens from the input messages and {room} "
                "tokens for the completion. Please reduce the number of tokens in the input messages or the completion "
                "to fit within the limit."
            )
        return None
