"""MessageForm: the form of messages that a chat template takes.

Invariant: only the form changes, never what a message says. A form is found by trying, in
`rollout_service.chat.learning`, never from a model's name. The one thing that a form may leave out is a greeting with
which the assistant opens the conversation, where the template refuses it or writes it as somebody else's. `greeting`
says so, and so does each trajectory's provenance.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ChatMessage = dict[str, Any]

_IDS = {
    "plain": re.compile(r".*", re.DOTALL),
    "nine": re.compile(r"[A-Za-z0-9]{9}"),
    "functions": re.compile(r"functions\.[^\s:]+:\d+"),
}


@dataclass(frozen=True, slots=True)
class MessageForm:
    """The form of messages."""

    ids: Literal["plain", "nine", "functions"] = "plain"
    """Call ids: `call_0`; nine letters or digits; `functions.NAME:NUMBER`."""
    arguments: Literal["mapping", "text"] = "mapping"
    """Arguments of a call: as a mapping, or as its JSON text."""
    absent: Literal["empty", "null"] = "empty"
    """A call without text has the content `""` or null. With null, a text without calls also has null calls."""
    reasoning: Literal["reasoning_content", "thinking"] = "reasoning_content"
    """The key of a message's reasoning."""
    greeting: Literal["kept", "left_out"] = "kept"
    """Whether assistant messages before the first user's are kept."""

    @staticmethod
    def all() -> Iterator[MessageForm]:
        """Every form, the usual ones first. Each keeps the greeting."""
        for parts in itertools.product(
            ("plain", "nine", "functions"), ("mapping", "text"), ("empty", "null"), ("reasoning_content", "thinking")
        ):
            yield MessageForm(*parts)  # type: ignore[arg-type]

    def of(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The messages in this form. An answer of a tool gets the id of the call that it answers."""
        messages = self._after_greeting(messages) if self.greeting == "left_out" else messages
        formed: list[ChatMessage] = []
        unanswered: list[str] = []
        count = 0
        for message in messages:
            if message["role"] == "tool":
                given = str(message.get("tool_call_id", "call_0"))
                own = unanswered.pop(0) if unanswered else self._id(given, "tool", count)
                formed.append({**message, "tool_call_id": own})
                continue
            new = dict(message)
            if message["role"] == "assistant":
                calls = [self._call(call, count + place) for place, call in enumerate(message.get("tool_calls") or ())]
                count += len(calls)
                unanswered = [call["id"] for call in calls]
                self._fill(new, calls)
            formed.append(new)
        return formed

    def _fill(self, message: ChatMessage, calls: list[dict[str, Any]]) -> None:
        if "reasoning_content" in message and self.reasoning != "reasoning_content":
            message[self.reasoning] = message.pop("reasoning_content")
        if calls:
            message["tool_calls"] = calls
        if self.absent == "null":
            if calls:
                message["content"] = message["content"] or None
            else:
                message["tool_calls"] = None

    def _call(self, call: dict[str, Any], count: int) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        if self.arguments == "text":
            arguments = json.dumps(arguments, ensure_ascii=False)
        own = self._id(call.get("id", "call_0"), function["name"], count)
        return {**call, "id": own, "function": {**function, "arguments": arguments}}

    def _id(self, given: str, name: str, count: int) -> str:
        if _IDS[self.ids].fullmatch(given):
            return given
        return f"{count:09d}" if self.ids == "nine" else f"functions.{name}:{count}"

    @staticmethod
    def _after_greeting(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        kept: list[ChatMessage] = []
        for place, message in enumerate(messages):
            if message["role"] == "user" or (message["role"] == "assistant" and message.get("tool_calls")):
                return [*kept, *messages[place:]]
            if message["role"] != "assistant":
                kept.append(message)
        return list(messages)  # nobody answered yet
