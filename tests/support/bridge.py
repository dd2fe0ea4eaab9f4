"""What a codec writes between two turns of the policy, whatever the turn before was."""

from __future__ import annotations

from collections.abc import Sequence

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.learning import OPENING, PROBE_TOOLS
from rollout_service.chat.message_form import ChatMessage
from rollout_service.chat.parsed_turn import tool_call
from rollout_service.chat.template import ToolSchema


def bridge(
    codec: ChatCodec,
    new_messages: Sequence[ChatMessage],
    before: Sequence[ChatMessage] = (),
    tools: Sequence[ToolSchema] = (),
) -> list[int]:
    """Token ids of `new_messages` as the template writes them, from the token that ended a turn to the next turn.

    Args:
        before: the conversation up to and with that turn. Without it, a turn is made up.
    """
    return codec.following(new_messages, before or _made_up(new_messages), tools or PROBE_TOOLS)[1:]


def _made_up(new_messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """A conversation that these messages may follow."""
    ids = [message.get("tool_call_id", "call_0") for message in new_messages if message["role"] == "tool"]
    turn: ChatMessage = {"role": "assistant", "content": "Said."}
    if ids:
        turn["tool_calls"] = [tool_call("called", {}, call_id) for call_id in ids]
    return [*OPENING, turn]
