"""Conversation: a trajectory as the chat messages that the policy saw and wrote.

Invariant: a message that the policy never saw is not in it, such as the user simulator's own tool calls. What the
policy wrote is read from its tokens, so thinking is there and a malformed call is the text that was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.parsed_turn import ChatMessage
from rollout_service.export import installed
from rollout_service.record.trajectory import Trajectory, Turn


def is_seen(record: dict[str, Any]) -> bool:
    """Whether the agent sees the message, by τ²'s rule."""
    if record["role"] == "user":
        return not record.get("tool_calls")
    return record["role"] == "assistant" or (record["role"] == "tool" and record.get("requestor") == "assistant")


def opening(trajectory: Trajectory) -> list[ChatMessage]:
    """The messages of the first turn's prompt, the system message first."""
    from rollout_service.tau2 import messages

    turns = trajectory.turns
    end = turns[0].message_index if turns else None
    seen = [record for record in trajectory.messages[:end] if is_seen(record)]
    return [
        *installed.system_messages(trajectory),
        *(chat for record in seen for chat in messages.to_chat(messages.from_record(record))),
    ]


def rest(trajectory: Trajectory, codec: ChatCodec) -> Iterator[tuple[ChatMessage, Turn | None]]:
    """The messages after the opening, each with the turn that wrote it; None: others did."""
    from rollout_service.tau2 import messages

    tools = installed.tools(trajectory)
    ids = {id(turn): segment.token_ids for segment in trajectory.segments for turn in segment.turns}
    wrote = {turn.message_index: turn for turn in trajectory.turns if turn.message_index is not None}
    first = min(wrote, default=len(trajectory.messages))

    def written(turn: Turn, record: dict[str, Any]) -> ChatMessage:
        message = codec.parse(ids[id(turn)][turn.start : turn.end].tolist(), tools).as_message()
        for call, known in zip(message.get("tool_calls", []), record.get("tool_calls") or [], strict=False):
            call["id"] = known["id"]  # the tools' answers name it
        return message

    for place, record in enumerate(trajectory.messages[first:], first):
        if place in wrote:
            yield written(wrote[place], record), wrote[place]
        elif is_seen(record):
            yield from ((chat, None) for chat in messages.to_chat(messages.from_record(record)))
    for turn in trajectory.turns:
        if turn.message_index is None:
            yield written(turn, {}), turn
