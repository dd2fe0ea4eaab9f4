"""Rows for supervised training: a JSON object a line, for each segment of a trajectory.

Invariant: `input_ids` are the tokens that the engine saw and sampled, and `assistant_masks` is 1 exactly on those that
the policy sampled: nothing that was decoded is encoded again. The messages are of the same conversation: the opening
ones are checked to render to the first tokens, and what the policy wrote is read from its tokens.

`turn_facts` says what each turn of the segment did, and where its tokens stand in `input_ids`.

TRL's SFTTrainer takes `input_ids` and `assistant_masks` as they are, and tokenizes nothing. `messages`, in which
`train` says what the policy wrote in this segment, and `tools` are for people and for other trainers. Arguments of
calls and `tools` are JSON text: as objects, a reader of columns would fill every row with the keys of all others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rollout_service.audit.verify import codec_of
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.parsed_turn import ChatMessage
from rollout_service.chat.transcript import Transcript
from rollout_service.errors import StorageError
from rollout_service.export import conversation, installed
from rollout_service.export.selection import Selected
from rollout_service.export.strict_json import to_json
from rollout_service.record.trajectory import Trajectory
from rollout_service.record.turn_arrays import described


def write(selected: Selected, path: Path, *, tokenizer: str | None = None) -> None:
    """Write the rows.

    Args:
        tokenizer: folder or hub name of the tokenizer, if the recorded name is no folder of this machine.

    Raises:
        CodecError: the tokenizer cannot be loaded, or is another one than made the trajectories.
        StorageError: a trajectory's messages are not those of its tokens, or the installed τ²-bench is another one.
        TaskError: a task is not the installed one.
    """
    with path.open("wb") as file:
        for trajectory in selected:
            installed.check_installed(trajectory)
            for row in rows(trajectory, codec_of(trajectory, tokenizer)):
                file.write(to_json(row) + b"\n")


def rows(trajectory: Trajectory, codec: ChatCodec) -> list[dict[str, Any]]:
    """One row for each segment of a trajectory in which the policy took a turn.

    Raises:
        StorageError: the messages before the first turn do not render to the first tokens.
    """
    opening = conversation.opening(trajectory)
    _check_opening(trajectory, codec, opening)
    rest = list(conversation.rest(trajectory, codec))
    tools = json.dumps(installed.tools(trajectory))
    found = []
    for number, segment in enumerate(trajectory.segments):
        own = {id(turn) for turn in segment.turns}
        last = max(place for place, (_, turn) in enumerate(rest) if id(turn) in own)
        said = [(message, False) for message in opening]
        said += [(message, id(turn) in own) for message, turn in rest[: last + 1]]
        found.append(
            {
                "trajectory_id": trajectory.trajectory_id,
                "segment": number,
                "task": str(trajectory.task),
                "reward": trajectory.reward,
                "messages": [_plain(message) | {"train": train} for message, train in said],
                "tools": tools,
                "input_ids": segment.token_ids.tolist(),
                "assistant_masks": segment.loss_mask.tolist(),
                "turn_facts": described(segment),
            }
        )
    return found


def _check_opening(trajectory: Trajectory, codec: ChatCodec, opening: list[ChatMessage]) -> None:
    first = trajectory.segments[0]
    rendered = Transcript(codec, installed.tools(trajectory), "append").prompt(opening)
    if not np.array_equal(rendered, first.token_ids[: first.prompt_length]):
        raise StorageError(
            f"Trajectory {trajectory.trajectory_id!r}: the messages before its first turn do not render to its first "
            f"{first.prompt_length} tokens.",
            "Check the file with `rollout-service verify`; its prompt was made by another template or release.",
        )


def _plain(message: ChatMessage) -> ChatMessage:
    """The message with its calls' arguments as text, as OpenAI's format has them."""
    if not message.get("tool_calls"):
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}
