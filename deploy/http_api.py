"""What a policy replica answers over HTTP: SGLang's `/generate`, `/model_info` and `/health`.

Invariant: an HTTP client gets exactly what a handle gets, in SGLang's format. A request that cannot be met is refused
with 400 and the field's name; it costs nobody else anything.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rollout_service.config import Policy
from rollout_service.policy.base import Generation, Sampling
from rollout_service.policy.sglang_format import from_payload, to_answer

Generate = Callable[[npt.NDArray[np.int32], Sampling, dict[str, Any]], Awaitable[Generation]]


async def respond(request: Request, policy: Policy, generate: Generate, version: int) -> Response:
    """The answer to one request. `version` is that of the replica's weights."""
    match request.method, request.url.path.rsplit("/", 1)[-1]:
        case "POST", "generate":
            return await _generated(await request.body(), policy, generate)
        case "GET", "health":
            return Response()
        case "GET", "model_info":
            return JSONResponse({"model_path": policy.model, "weight_version": str(version), "is_generation": True})
    return _refusal(404, f"there is no {request.method} {request.url.path}; there are generate, model_info and health")


async def _generated(body: bytes, policy: Policy, generate: Generate) -> Response:
    if policy.engine == "scripted":
        return _refusal(400, "the scripted engine plays tasks; it needs an engine with a model to answer tokens")
    start = time.perf_counter()
    try:
        payload = json.loads(body)
        prompts, sampling, batch = from_payload(payload)
        rids = _rids(payload.get("rid"), len(prompts))
    except ValueError as error:
        return _refusal(400, str(error))
    tasks = [asyncio.ensure_future(generate(prompt, sampling, {})) for prompt in prompts]
    try:
        generations = await asyncio.gather(*tasks)
    except ValueError as error:  # the engine's word for a request that it cannot meet: too long a prompt, a bad id
        return _refusal(400, str(error))
    finally:
        for task in tasks:  # one prompt that is refused ends the others
            task.cancel()
    seconds = time.perf_counter() - start
    answers = [to_answer(generation, rid, seconds) for generation, rid in zip(generations, rids, strict=True)]
    return JSONResponse(answers if batch else answers[0])


def _rids(given: Any, n: int) -> list[str]:
    """A request id for each prompt: those that were given, or new ones."""
    rids = given if isinstance(given, list) else [given] * n
    if len(rids) != n or not all(rid is None or (isinstance(rid, str) and rid.isprintable()) for rid in rids):
        raise ValueError("rid must be text, or a list of as many as there are prompts")
    return [rid or uuid.uuid4().hex for rid in rids]


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status)
