"""Specimen: a short conversation in a codec's tokens, for people to look at.

Invariant: the tokens are made as an episode makes them: a prompt, turns that a policy would sample, and what follows
each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.message_form import ChatMessage
from rollout_service.chat.parsed_turn import tool_call
from rollout_service.errors import CodecError

_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "find_order",
            "description": "Find an order.",
            "parameters": {
                "type": "object",
                "properties": {
                    "order_id": {"type": "string", "description": "Number of the order."},
                    "page": {"type": "integer", "description": "Page of the result."},
                },
                "required": ["order_id"],
            },
        },
    }
]
_OPENING: list[ChatMessage] = [
    {"role": "system", "content": "You help customers with their orders."},
    {"role": "user", "content": "Where is my order #W0123?"},
]
_THOUGHT = "I look for it."


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one kind that stand together."""

    sampled: bool
    """Whether the policy samples them: their loss mask is 1."""
    token_ids: tuple[int, ...]


def conversation(codec: ChatCodec) -> list[Piece]:
    """A call, its result, an answer, and thanks: context and sampled tokens by turns.

    Raises:
        CodecError: the template does not write such a conversation.
    """
    call: ChatMessage = {"role": "assistant", "content": "", "tool_calls": [_call()]}
    answer: ChatMessage = {"role": "assistant", "content": "It arrives tomorrow."}
    if codec.supports_reasoning:
        call["reasoning_content"] = answer["reasoning_content"] = _THOUGHT
    found: ChatMessage = {"role": "tool", "tool_call_id": "call_0", "content": '{"status": "shipped"}'}
    thanks: ChatMessage = {"role": "user", "content": "Thank you!"}
    pieces = [Piece(False, tuple(codec.render(_OPENING, _TOOLS)))]
    history = list(_OPENING)
    for message, reply in ((call, found), (answer, thanks)):
        sampled = _written(codec, message, history)
        before = [*history, codec.parse(sampled, _TOOLS).as_answered_message()]
        following = codec.following([reply], before, _TOOLS)
        pieces.append(Piece(True, tuple(sampled)))
        pieces.append(Piece(False, tuple(codec.unsampled(following, sampled[-1]))))
        history += [message, reply]
    return pieces


def _written(codec: ChatCodec, message: ChatMessage, history: Sequence[ChatMessage]) -> list[int]:
    try:
        return codec.encode_message(message, history, _TOOLS)
    except CodecError:  # the turn changes how the messages before it are written
        return codec.encode_message(message, _OPENING, _TOOLS)


def _call() -> dict[str, Any]:
    return tool_call("find_order", {"order_id": "#W0123", "page": 1})
