"""Transcript: one episode's conversation as the policy sees it, in tokens.

Invariant: every sampled token is recorded once, with mask 1, in the segment in which it was sampled; each segment is
what the engine was sent plus what it sampled, and ends with a sampled token.

Two history modes. `append` never touches what the engine has seen: one segment. `template` sends what the chat template
makes of the messages: where that rewrites earlier turns (thinking is dropped), a new segment starts, and the earlier
turns stand in its prompt as context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from rollout_service.chat.codec import ChatCodec, ToolSchema
from rollout_service.chat.parsed_turn import ChatMessage, ParsedTurn
from rollout_service.policy.base import Generation
from rollout_service.record.ledger import TokenLedger
from rollout_service.record.trajectory import CONTEXT_VERSION, TokenSegment, Turn

History = Literal["append", "template"]


class Transcript:
    """Builds prompts from messages and records turns, in the order prompt, record, prompt, record, …"""

    def __init__(self, codec: ChatCodec, tools: Sequence[ToolSchema] = (), history: History = "append") -> None:
        self._codec = codec
        self._tools = list(tools)
        self._history: History = history
        self._messages: list[ChatMessage] = []
        self._ledgers: list[TokenLedger] = []
        self.newest_version = CONTEXT_VERSION
        """Of the weights that sampled a token so far: later turns may not be sampled with older ones."""

    def prompt(self, new_messages: Sequence[ChatMessage]) -> npt.NDArray[np.int32]:
        """Add the messages since the last turn (the first time: all of them, system message first).

        Returns:
            int32[n]: what the engine is sent.
        """
        self._messages.extend(new_messages)
        if not self._ledgers:
            self._ledgers.append(TokenLedger(self._codec.render(self._messages, self._tools)))
        elif self._history == "append":
            ledger = self._ledgers[-1]
            if ledger.last_token != self._codec.end_of_turn_id:
                ledger.append_context([self._codec.end_of_turn_id])
            ledger.append_context(self._codec.bridge(new_messages))
        else:
            rendered = self._codec.render(self._messages, self._tools)
            ledger = self._ledgers[-1]
            if ledger.is_start_of(rendered):
                ledger.append_context(rendered[len(ledger) :])
            else:
                self._ledgers.append(TokenLedger(rendered))
        return self._ledgers[-1].input_ids()

    def record(self, generation: Generation, seconds: float = 0.0) -> ParsedTurn:
        """Record what the engine sampled for the last prompt, and read it.

        Raises:
            ValueError: the generation's arrays are not aligned.
        """
        sampled = generation.token_ids.tolist()
        turn = self._codec.parse(sampled)
        unknown = len(self._codec.unknown_ids(sampled))
        self._ledgers[-1].append_policy(generation, [call.status for call in turn.calls], seconds, unknown)
        self._messages.append(turn.as_message())
        self.newest_version = max(self.newest_version, int(generation.weight_versions.max()))
        return turn

    @property
    def turns(self) -> list[Turn]:
        """Every turn recorded so far, in order."""
        return [turn for ledger in self._ledgers for turn in ledger.turns]

    def segments(self) -> list[TokenSegment]:
        """The segments so far: those with at least one turn."""
        return [ledger.to_segment() for ledger in self._ledgers if ledger.turns]
