"""What a policy replica answers over HTTP: SGLang's `/generate`, `/model_info` and `/health`.

Invariant: an HTTP client gets the same as a handle's caller, in SGLang's format. A request that cannot be met gets a
4xx answer with the field's name. Where there are tokens, a request without one that allows it is not read. No request
slows others down: size and time are bounded, and long bodies are read and long answers written in another thread than
the event loop's.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pydantic_core
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.gateway.guard import Guard
from rollout_service.gateway.tokens import Refusal
from rollout_service.policy.base import Generation, RequestError, TurnInfo
from rollout_service.policy.context import context_length
from rollout_service.policy.sglang_format import to_answer
from rollout_service.policy.sglang_request import read_request

_Result = TypeVar("_Result")

Generate = Callable[[npt.NDArray[np.int32], Sampling, TurnInfo], Awaitable[Generation]]

_SHORT_BODY = 1 << 16
"""Largest body in bytes that is read on the event loop, in less than a millisecond. It need not wait for longer
ones."""

_SHORT_TURN = 1024
"""Largest turn in tokens whose answer is written on the event loop."""

_beside = ThreadPoolExecutor(1, thread_name_prefix="http-bodies")
"""One thread, because several would only share the interpreter's lock and finish no sooner."""


async def respond(request: Request, policy: PolicyConfig, generate: Generate, version: int, guard: Guard) -> Response:
    """Answer one request.

    Args:
        version: version of the replica's weights.
        guard: says whether the request is allowed.
    """
    try:
        await guard.admit(request.headers.get("authorization"), "collect")
    except Refusal as refusal:
        return _refusal(refusal.status, str(refusal), refusal.headers)
    match request.method, request.url.path.rsplit("/", 1)[-1]:
        case "POST", "generate":
            try:
                return await _generated(request, policy, generate)
            except RequestError as error:
                return _refusal(HTTPStatus.BAD_REQUEST, str(error))
            except HTTPException as error:
                return _refusal(error.status_code, error.detail)
        case "GET", "health":
            return Response()
        case "GET", "model_info":
            return _json(
                {
                    "model_path": policy.model,
                    "context_length": context_length(policy),
                    "weight_version": str(version),
                    "is_generation": True,
                }
            )
    return _refusal(
        HTTPStatus.NOT_FOUND,
        f"there is no {request.method} {request.url.path}; there are generate, model_info and health",
    )


async def _generated(request: Request, policy: PolicyConfig, generate: Generate) -> Response:
    if policy.engine == "scripted":
        raise RequestError("the scripted engine plays tasks; it needs an engine with a model to answer tokens")
    start = time.perf_counter()
    body = await read_body(request, policy.http_body_bytes, policy.http_body_seconds, "policy.")
    asked = await _at_once_if(len(body) <= _SHORT_BODY, read_request, body, policy.http_prompts)
    tasks = []
    try:
        for prompt in asked.prompts:
            tasks.append(asyncio.ensure_future(generate(prompt, asked.sampling, TurnInfo())))
            await asyncio.sleep(0)  # starting one takes a moment, so others run in between
        generations = await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # if one prompt is refused, the others end
            task.cancel()
    seconds = time.perf_counter() - start
    rids = [rid or uuid.uuid4().hex for rid in asked.rids]
    turns = zip(generations, rids, strict=True)
    answers = [await _at_once_if(len(turn[0].token_ids) <= _SHORT_TURN, _written, *turn, seconds) for turn in turns]
    content = b"[" + b",".join(answers) + b"]" if asked.is_batch else answers[0]
    return Response(content, media_type="application/json")


async def _at_once_if(is_short: bool, function: Callable[..., _Result], *args: Any) -> _Result:
    """The function's result. It is called in another thread unless it is short."""
    return function(*args) if is_short else await asyncio.get_running_loop().run_in_executor(_beside, function, *args)


async def read_body(request: Request, largest: int, seconds: float, section: str = "") -> bytes:
    """Read the body, within the bounds of size and time.

    Args:
        section: of the settings `http_body_bytes` and `http_body_seconds`, for errors.

    Raises:
        HTTPException: the body is too large, too slow or incomplete.
    """
    too_large = HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has more than {section}http_body_bytes={largest}: send less at a time",
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and (len(declared) > len(str(largest)) or int(declared) > largest):
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > largest:
                    raise too_large
    except TimeoutError:
        said = f"the body did not come in {section}http_body_seconds={seconds:g}; {size} bytes did"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, said) from None
    except ClientDisconnect:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"the body ended after {size} bytes") from None
    return b"".join(parts)


def _written(generation: Generation, rid: str, seconds: float) -> bytes:
    """The JSON of one answer. Takes milliseconds for a long turn."""
    generation.check()
    return pydantic_core.to_json(to_answer(generation, rid, seconds))


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": {"message": message}}, status, headers)


def _json(content: Any, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    return Response(
        json.dumps(content), status, headers, media_type="application/json"
    )  # ASCII: what is refused may be no text
