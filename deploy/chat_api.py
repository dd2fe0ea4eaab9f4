"""What a replica of the user simulator answers over HTTP: OpenAI's `/v1/chat/completions`, `/v1/models` and `/health`.

Invariant: every answer has OpenAI's shape, errors too. A request without the key is not read. Prompts are rendered and
turns are parsed in another thread than the event loop's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import rollout_service.logs as logs
from deploy.engines.base import Engine
from deploy.http_api import read_body
from rollout_service.chat import completions
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.completions import CompletionRequest, RefusedRequest
from rollout_service.errors import CodecError, first_line
from rollout_service.gateway.guard import Guard
from rollout_service.gateway.tokens import Refusal
from rollout_service.policy.base import RequestError, TurnInfo

_log = logs.logger(__name__)

_MOST_BYTES = 16 << 20
"""Largest body of a request. A conversation of 100,000 tokens has less than 1 MB."""

_BODY_SECONDS = 30.0
"""In which the body must arrive."""


class ChatApi:
    """One engine with its codec behind OpenAI's API."""

    def __init__(
        self, model: str, engine: Engine, codec: ChatCodec, context_length: int, max_new_tokens: int, guard: Guard
    ) -> None:
        """
        Args:
            model: its name in requests.
            context_length: most tokens of prompt and answer together.
            max_new_tokens: of an answer whose request names no number.
            guard: knows the key.
        """
        self._model = model
        self._engine = engine
        self._codec = codec
        self._context_length = context_length
        self._max_new_tokens = max_new_tokens
        self._guard = guard

    async def respond(self, request: Request) -> Response:
        """Answer one request."""
        try:
            await self._guard.admit(request.headers.get("authorization"), "collect")
        except Refusal as refusal:
            refused = RefusedRequest(str(refusal), "invalid_api_key", status=refusal.status)
            return _json(refused.body(), refused.status, refusal.headers)
        try:
            return _json(await self._answer(request))
        except RefusedRequest as refused:
            return _json(refused.body(), refused.status)
        except Exception as error:
            _log.exception("The user simulator's engine failed.")
            failed = RefusedRequest(f"The engine failed: {type(error).__name__}.", "engine_failed", status=500)
            return _json(failed.body(), failed.status)

    async def _answer(self, request: Request) -> dict[str, Any]:
        path = request.url.path.rstrip("/")
        if request.method == "POST" and path.endswith("/chat/completions"):
            try:
                body = await read_body(request, _MOST_BYTES, _BODY_SECONDS)
            except HTTPException as error:
                raise RefusedRequest(error.detail, status=error.status_code) from None
            return await self._completion(await asyncio.to_thread(completions.read, body))
        if request.method == "GET" and path.endswith("/models"):
            own = {"id": self._model, "object": "model", "created": 0, "owned_by": "rollout_service"}
            return {"object": "list", "data": [own | {"max_model_len": self._context_length}]}
        if request.method == "GET" and path.endswith("/health"):
            return {}
        raise RefusedRequest(
            f"There is no {request.method} {request.url.path}; there are v1/chat/completions, v1/models and health.",
            "unknown_url",
            status=HTTPStatus.NOT_FOUND,
        )

    async def _completion(self, asked: CompletionRequest) -> dict[str, Any]:
        if asked.model != self._model:
            text = f"The model {asked.model[:200]!r} does not exist here; {self._model!r} does."
            raise RefusedRequest(text, "model_not_found", "model", HTTPStatus.NOT_FOUND)
        try:
            prompt = await asyncio.to_thread(self._codec.prompt, asked.messages, asked.tools)
        except CodecError as error:
            raise RefusedRequest(first_line(error), "invalid_value", "messages") from None
        room = self._context_length - len(prompt)
        most = asked.most_tokens
        if room < (most or 1):
            raise RefusedRequest(
                f"This model's maximum context length is {self._context_length} tokens. However, the messages and "
                f"tools have {len(prompt)} tokens" + (f", and {most} more were asked for." if most else "."),
                "context_length_exceeded",
                "messages",
            )
        sampling = asked.sampling(most or min(self._max_new_tokens, room), self._codec.stop_token_ids)
        try:
            made = await self._engine.generate(np.asarray(prompt, dtype=np.int32), sampling, TurnInfo())
        except RequestError as error:
            raise RefusedRequest(str(error)) from None
        turn = await asyncio.to_thread(self._codec.parse, made.token_ids.tolist(), asked.tools)
        return completions.answer(
            self._model,
            turn,
            is_cut=made.finish_reason == "length",
            prompt_tokens=len(prompt),
            cached_tokens=made.cached_tokens,
            completion_tokens=len(made.token_ids),
        )


def _json(content: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, dict(headers or {}), media_type="application/json")
