"""Converts τ² messages: to the chat codec's form, from a parsed turn, and to plain values for the record."""

from __future__ import annotations

from typing import Any

from rollout_service.chat.control_tokens import plain
from rollout_service.chat.parsed_turn import ChatMessage, ParsedTurn, tool_call
from rollout_service.tau2 import compat


def to_chat(message: compat.Message) -> list[ChatMessage]:
    """The message in the chat template's form. Several tool results become several messages."""
    if isinstance(message, compat.MultiToolMessage):
        return [chat for inner in message.tool_messages for chat in to_chat(inner)]
    if isinstance(message, compat.ToolMessage):
        return [{"role": "tool", "tool_call_id": message.id, "content": message.content or ""}]
    chat: ChatMessage = {"role": message.role, "content": message.content or ""}
    if isinstance(message, compat.AssistantMessage) and message.tool_calls:
        chat["tool_calls"] = [tool_call(call.name, call.arguments, call.id) for call in message.tool_calls]
    return [chat]


def from_turn(turn: ParsedTurn, turn_number: int) -> compat.AssistantMessage:
    """The message that τ² receives for a policy turn. Call ids follow from the turn's number, so a rerun repeats them.

    A malformed call becomes a call with an argument that no tool has, so the environment answers with an error.
    """
    calls = [
        compat.ToolCall(id=f"call_{turn_number}_{position}", name=call.name, arguments=plain(call.arguments))
        for position, call in enumerate(turn.calls)
    ]
    return compat.AssistantMessage(
        role="assistant", content=plain(turn.content) or None, tool_calls=calls or None, cost=0.0
    )


def to_record(message: compat.Message) -> dict[str, Any]:
    """The message as plain JSON values, without the provider's raw answer and unset fields."""
    record: dict[str, Any] = message.model_dump(mode="json", exclude={"raw_data"}, exclude_none=True)
    return record


def from_record(record: dict[str, Any]) -> compat.Message:
    """The inverse of `to_record`."""
    classes: dict[str, Any] = {
        "system": compat.SystemMessage,
        "assistant": compat.AssistantMessage,
        "user": compat.UserMessage,
        "tool": compat.ToolMessage,
    }
    return classes[record["role"]](**record)
