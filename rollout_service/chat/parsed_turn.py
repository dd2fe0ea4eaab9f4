"""ParsedTurn: a policy turn, parsed from its tokens.

Invariant: parsing is strict. Anything that is not exactly a tool call is marked as malformed, and keeps the text that
the policy wrote. Nothing is repaired. A malformed call is still a call: its name and argument make the environment
answer with an error.

`ChatMessage` is OpenAI's message format with tool-call arguments as dicts, because several templates would escape
strings twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import rollout_service.chat.call_formats as call_formats

ChatMessage = dict[str, Any]

INVALID_CALL_NAME = "invalid_tool_call"
"""Replaces the tool's name when the policy wrote no readable one."""

MALFORMED_ARGUMENT = "malformed_arguments"
"""The only argument of a malformed call. No tool has it, so the environment answers with its own error."""

OK = "ok"

MAX_NESTING = 64
"""Levels of nesting in arguments; deeper ones are malformed. τ²'s messages (pydantic) cannot be serialized beyond 255
levels."""

_WRITTEN_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,128})"|<function=([^>\s]{1,128})>')


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One tool call as the policy wrote it."""

    name: str
    """The tool's name. A malformed call has the name that can be read in it, or `INVALID_CALL_NAME`."""
    arguments: dict[str, Any]
    """The arguments. A malformed call has `{MALFORMED_ARGUMENT: text}`."""
    status: str = OK
    """`ok`, or what is wrong. Some of these words are the `renderers` parser's (`invalid_json`, `unclosed_block`, …).
    The others are ours (`missing_arguments`, `unknown_key`, `duplicate_key`, `malformed_structure`,
    `inside_thinking`, `several_calls`, …)."""
    id: str = "call_0"
    """The call's id, if the policy writes ids."""


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A policy turn, parsed from its tokens."""

    content: str
    """Text before the first tool call, without surrounding white space."""
    reasoning: str | None
    """Text of the thinking block. None: there was none."""
    calls: list[ParsedCall] = field(default_factory=list)
    raw: str = ""
    """All text after the thinking block, as written."""

    @property
    def is_empty(self) -> bool:
        """Whether the turn has neither text nor a call. Thinking alone is not an answer."""
        return not self.content and not self.calls

    def as_message(self) -> ChatMessage:
        """The turn as a message for the chat template. With a malformed call, it is the text that was written."""
        message: ChatMessage = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if any(call.status != OK for call in self.calls):
            message["content"] = self.raw
        elif self.calls:
            message["tool_calls"] = [tool_call(call.name, call.arguments, call.id) for call in self.calls]
        return message

    def as_answered_message(self) -> ChatMessage:
        """The turn as a message that tools answer: a malformed call stands there as a call, too."""
        message: ChatMessage = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [tool_call(call.name, call.arguments, call.id) for call in self.calls]
        return message


def tool_call(name: str, arguments: dict[str, Any], call_id: str = "call_0") -> dict[str, Any]:
    """A tool call in `ChatMessage` form."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def checked(call: Any, format: str, *, inside_thinking: bool = False) -> ParsedCall:
    """Convert a call that a `renderers` parser read. A call that is not exactly right becomes a malformed one.

    Args:
        format: the parser's name, see `rollout_service.chat.call_formats`.
        inside_thinking: whether the call stands in a thinking block, where it is not meant as a call.
    """
    status, name, arguments = str(call.status), call.name, call.arguments
    if status == OK and inside_thinking:
        status = "inside_thinking"
    elif status == OK:
        problem = _impossible(name, arguments) or call_formats.problem(format, call.raw, name, arguments)
        status = problem or _not_json(name, arguments) or OK
    if status == OK:
        return ParsedCall(name, arguments)
    return malformed(call.raw, status, readable_name(name))


def problem(name: Any, arguments: Any) -> str | None:
    """Why no call has this name and these arguments. None: one may."""
    return _impossible(name, arguments) or _not_json(name, arguments)


def readable_name(name: Any) -> str | None:
    """The name, if it is text that a message can hold."""
    return name if isinstance(name, str) and _is_json(name) else None


def _impossible(name: Any, arguments: Any) -> str | None:
    if not isinstance(name, str) or not name:
        return "missing_name"
    if not isinstance(arguments, dict):
        return "arguments_not_an_object"
    return "nested_too_deep" if _is_deeper(arguments, MAX_NESTING) else None


def _not_json(name: Any, arguments: Any) -> str | None:
    return None if _is_json([name, arguments]) else "invalid_json"


def malformed(raw: str, status: str, name: str | None = None) -> ParsedCall:
    """The malformed call for the text `raw`. Its name is `name`, or else what looks like a name in `raw`."""
    written = None if name or status == "missing_name" else _WRITTEN_NAME.search(raw)
    found = name or (written[1] or written[2] if written else INVALID_CALL_NAME)
    return ParsedCall(found, {MALFORMED_ARGUMENT: raw}, status)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and dicts in `value` are nested more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    return not levels or any(_is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))


def _is_json(value: Any) -> bool:
    """False for NaN, infinity and lone surrogates: Python reads them, but JSON has no such values."""
    try:
        return bool(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8"))
    except ValueError:
        return False
