"""ParsedTurn: a policy turn read back from its tokens.

Invariant: strict. What is not exactly a tool call is marked malformed, with the text that the policy wrote; nothing is
repaired. A malformed call still is a call, to a name and with an argument that the environment will answer as an error.

Message format (`ChatMessage`): OpenAI's, with tool-call arguments as dicts (several templates escape strings twice).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import rollout_service.chat.call_formats as call_formats

ChatMessage = dict[str, Any]

INVALID_CALL_NAME = "invalid_tool_call"
"""Stands in for a tool's name when the policy wrote none that can be read."""

MALFORMED_ARGUMENT = "malformed_arguments"
"""The one argument of a malformed call: no tool has it, so the environment answers with its own error."""

OK = "ok"

MAX_NESTING = 64
"""Arguments nested deeper are malformed: τ²'s messages (pydantic) cannot be written out beyond 255."""

_WRITTEN_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,128})"|<function=([^>\s]{1,128})>')


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One tool call as the policy wrote it."""

    name: str
    """The tool's name; for a malformed call the name that can be read in it, or `INVALID_CALL_NAME`."""
    arguments: dict[str, Any]
    """Its arguments; for a malformed call `{MALFORMED_ARGUMENT: text}`."""
    status: str = OK
    """`ok`, or what is wrong: the `renderers` parser's word for it (`invalid_json`, `unclosed_block`, …), or ours
    (`missing_arguments`, `unknown_key`, `duplicate_key`, `malformed_structure`, `inside_thinking`, …)."""


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A policy turn read back from its tokens."""

    content: str
    """Text before the first tool call, outer white space stripped."""
    reasoning: str | None
    """Text of the thinking block; None when there was none."""
    calls: list[ParsedCall] = field(default_factory=list)
    raw: str = ""
    """All text after the thinking block, as written."""

    @property
    def is_empty(self) -> bool:
        """True when the turn says nothing and calls nothing: thinking alone is no answer."""
        return not self.content and not self.calls

    def as_message(self) -> ChatMessage:
        """The turn as history for the chat template. A turn with a malformed call is kept as the text it was."""
        message: ChatMessage = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if any(call.status != OK for call in self.calls):
            message["content"] = self.raw
        elif self.calls:
            message["tool_calls"] = [tool_call(call.name, call.arguments) for call in self.calls]
        return message


def tool_call(name: str, arguments: dict[str, Any], call_id: str = "call_0") -> dict[str, Any]:
    """A tool call in `ChatMessage` form."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def checked(call: Any, format: str, *, inside_thinking: bool = False) -> ParsedCall:
    """A `renderers` call of that format as ours. Strict: a call that is not exactly right is malformed, never repaired.

    Args:
        format: the parser's name, see `rollout_service.chat.call_formats`.
        inside_thinking: it stands in a thinking block, where nothing is called.
    """
    status, name, arguments = str(call.status), call.name, call.arguments
    if status == OK:
        if inside_thinking:
            status = "inside_thinking"
        elif not isinstance(name, str):
            status = "missing_name"
        elif not isinstance(arguments, dict):
            status = "arguments_not_an_object"
        elif _is_deeper(arguments, MAX_NESTING):
            status = "nested_too_deep"
        elif (problem := call_formats.problem(format, call.raw, name, arguments)) is not None:
            status = problem
        elif not _is_json([name, arguments]):
            status = "invalid_json"
    if status == OK:
        return ParsedCall(name, arguments)
    return malformed(call.raw, status, name if isinstance(name, str) and _is_json(name) else None)


def malformed(raw: str, status: str, name: str | None = None) -> ParsedCall:
    """The call that stands for `raw`. Its name is `name`, else what looks like one in `raw`."""
    written = None if name or status == "missing_name" else _WRITTEN_NAME.search(raw)
    found = name or (written[1] or written[2] if written else INVALID_CALL_NAME)
    return ParsedCall(found, {MALFORMED_ARGUMENT: raw}, status)


def _is_deeper(value: Any, levels: int) -> bool:
    """True when lists and dicts are nested in `value` more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    return not levels or any(_is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))


def _is_json(value: Any) -> bool:
    """False for NaN, infinity and half of a surrogate pair: Python reads them, but JSON has no such values."""
    try:
        return bool(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8"))
    except ValueError:
        return False
