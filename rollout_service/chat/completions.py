"""OpenAI's chat completions: a request's body read, and a turn written as an answer.

Invariant: any bytes give a `CompletionRequest` or a `RefusedRequest` in OpenAI's shape that names the parameter. No
parameter is silently ignored but `seed` and `user`: OpenAI guarantees no effect of them either.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rollout_service.chat.message_form import ChatMessage
from rollout_service.chat.parsed_turn import ParsedTurn
from rollout_service.config.sampling import Sampling


class RefusedRequest(ValueError):
    """A request that is answered with an error.

    Args:
        code: OpenAI's name of the error, such as `context_length_exceeded`.
        param: the parameter at fault.
    """

    def __init__(self, message: str, code: str | None = None, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.status = status

    def body(self) -> dict[str, Any]:
        """The answer's body."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def _without_nulls(value: Any) -> Any:
    """A parameter that is null is as one that is not given."""
    return {name: each for name, each in value.items() if each is not None} if isinstance(value, Mapping) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Text(_Part):
    type: Literal["text"]
    text: str


def _as_parts(value: Any) -> Any:
    """A message's text as a list of parts, the other form of it."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class _CalledFunction(_Part):
    name: str
    arguments: str


class _Call(_Part):
    id: str
    type: Literal["function"] = "function"
    function: _CalledFunction
    name: str | None = None
    """τ²-bench repeats the function's name here."""


class _Message(_Part):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[_Text], BeforeValidator(_as_parts)] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] = []
    tool_call_id: str | None = None


class _Function(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    name: str


class _Tool(_Part):
    type: Literal["function"]
    function: _Function


class _Body(_Part):
    model: str
    messages: list[Annotated[_Message, BeforeValidator(_without_nulls)]] = Field(min_length=1)
    tools: list[_Tool] = []
    tool_choice: Literal["auto", "none"] = "auto"
    parallel_tool_calls: Literal[True] = True
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: Literal[1] = 1
    stream: Literal[False] = False
    seed: int | None = None
    user: str | None = None


_UNSUPPORTED = {
    *("stop", "logit_bias", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "prediction"),
    *("response_format", "modalities", "audio", "reasoning_effort", "verbosity", "functions", "function_call"),
    *("stream_options", "web_search_options", "store", "metadata", "service_tier", "safety_identifier"),
    "prompt_cache_key",
}
"""OpenAI's parameters that are refused, so that nobody takes them for misspelt."""

_ONLY = {
    "stream": "Answers are not streamed; leave it out",
    "n": "A request gets one answer; leave it out",
    "parallel_tool_calls": "The model may make several calls in an answer; leave it out",
    "tool_choice": "It may be 'auto' or 'none', because no engine here is made to call a tool",
}
"""Parameters of which only some values are supported, and what to do."""


class CompletionRequest:
    """What is asked for."""

    def __init__(self, body: _Body) -> None:
        """
        Raises:
            RefusedRequest: a message lacks something, or two parameters exclude each other.
        """
        self.model = body.model
        self.messages = [_message(number, message) for number, message in enumerate(body.messages)]
        self.tools: list[dict[str, Any]] = (
            [tool.model_dump() for tool in body.tools] if body.tool_choice == "auto" else []
        )
        if body.max_completion_tokens and body.max_tokens:
            text = "'max_tokens' and 'max_completion_tokens' are two names of one parameter. Leave one out."
            raise RefusedRequest(text, "invalid_value", "max_tokens")
        self.most_tokens = body.max_completion_tokens or body.max_tokens
        """Most tokens of the answer; None: the request names no number."""
        self._temperature, self._top_p = body.temperature, body.top_p

    def sampling(self, max_new_tokens: int, stop_token_ids: list[int]) -> Sampling:
        """How the answer is sampled.

        Raises:
            RefusedRequest: the engine does not take these numbers.
        """
        try:
            return Sampling(
                temperature=self._temperature,
                top_p=self._top_p,
                max_new_tokens=max_new_tokens,
                stop_token_ids=tuple(stop_token_ids),
            )
        except ValidationError as error:
            raise _refused(error) from None


def read(body: bytes) -> CompletionRequest:
    """The request in the body.

    Raises:
        RefusedRequest: it is no JSON object, lacks something, or asks for what is not supported.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedRequest("The body of the request is not valid JSON.", "invalid_json") from None
    if not isinstance(given, dict):
        raise RefusedRequest("The body of the request is not a JSON object.", "invalid_json")
    try:
        return CompletionRequest(_Body.model_validate(_without_nulls(given)))
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> RefusedRequest:
    first = error.errors()[0]
    path = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
    param = "".join(path).lstrip(".")
    if param in _UNSUPPORTED:
        return RefusedRequest(f"Unsupported parameter: '{param}'. Leave it out.", "unsupported_parameter", param)
    if param in _ONLY and first["type"] == "literal_error":
        return RefusedRequest(f"Unsupported value for '{param}'. {_ONLY[param]}.", "unsupported_value", param)
    if first["type"] == "extra_forbidden":
        return RefusedRequest(f"Unknown parameter: '{param}'.", "unknown_parameter", param)
    if first["type"] == "missing":
        return _missing(param)
    return RefusedRequest(f"Invalid value for '{param}': {first['msg']}.", "invalid_value", param)


def _missing(param: str) -> RefusedRequest:
    return RefusedRequest(f"Missing required parameter: '{param}'.", "missing_required_parameter", param)


def _message(number: int, message: _Message) -> ChatMessage:
    """The message for the chat template.

    Raises:
        RefusedRequest: it lacks its text or the id of its call, or a call's arguments are no JSON object.
    """
    if message.content is None and message.role != "assistant":
        raise _missing(f"messages[{number}].content")
    content = "".join(part.text for part in message.content or ())
    role = "system" if message.role == "developer" else message.role
    made: ChatMessage = {"role": role, "content": content}
    if message.role == "tool":
        if message.tool_call_id is None:
            raise _missing(f"messages[{number}].tool_call_id")
        made["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None:
        made["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        made["tool_calls"] = [
            _call(f"messages[{number}].tool_calls[{place}]", call) for place, call in enumerate(message.tool_calls)
        ]
    return made


def _call(where: str, call: _Call) -> dict[str, Any]:
    param = f"{where}.function.arguments"
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        raise RefusedRequest(f"Invalid value for '{param}': it is not valid JSON.", "invalid_value", param) from None
    if not isinstance(arguments, dict):
        raise RefusedRequest(f"Invalid value for '{param}': it is not a JSON object.", "invalid_value", param)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def answer(
    model: str, turn: ParsedTurn, *, is_cut: bool, prompt_tokens: int, cached_tokens: int, completion_tokens: int
) -> dict[str, Any]:
    """The answer's body. A turn with a malformed call is text, as it was written.

    Args:
        is_cut: whether the turn ended because it had as many tokens as it may.
    """
    written = turn.as_message()
    message: dict[str, Any] = {"role": "assistant", "content": written["content"] or None, "refusal": None}
    if "reasoning_content" in written:
        message["reasoning_content"] = written["reasoning_content"]
    calls = [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in written.get("tool_calls", ())
    ]
    if calls:
        message["tool_calls"] = calls
    reason = "length" if is_cut else "tool_calls" if calls else "stop"
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        },
    }
