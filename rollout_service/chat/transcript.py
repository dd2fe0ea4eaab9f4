"""Transcript: one episode's conversation in tokens, as the policy sees it.

Invariant: every sampled token is recorded once, with mask 1, in the segment in which it was sampled. A segment holds
what the engine was sent and what it sampled, and ends with a sampled token.

There are two history modes. `append` never changes what the engine has seen, so there is one segment. `template` sends
what the chat template makes of the messages. When the template rewrites earlier turns (for example by dropping
thinking), a new segment starts, with the earlier turns as context in its prompt. What the policy sampled stays as it
was sampled where the template keeps its text, even if the tokenizer would cut that text into other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.parsed_turn import ChatMessage, ParsedTurn
from rollout_service.chat.template import ToolSchema
from rollout_service.policy.base import Generation
from rollout_service.record.ledger import TokenLedger
from rollout_service.record.trajectory import CONTEXT_VERSION, TokenSegment, Turn

History = Literal["append", "template"]


class Transcript:
    """Builds prompts from messages and records turns. Call `prompt` and `record` in turn."""

    def __init__(self, codec: ChatCodec, tools: Sequence[ToolSchema] = (), history: History = "append") -> None:
        self._codec = codec
        self._tools = list(tools)
        self._history: History = history
        self._messages: list[ChatMessage] = []
        """Mode `template`: the conversation. Mode `append`: what stands before the newest turn, shielded."""
        self._turn: ChatMessage = {}
        """The newest turn."""
        self._ledgers: list[TokenLedger] = []
        self.newest_version = CONTEXT_VERSION
        """Newest weight version that sampled a token so far. Later turns may not be sampled with older weights."""
        self.oldest_version = CONTEXT_VERSION
        """Oldest weight version so far, as `Trajectory.oldest_version` will be."""

    def prompt(self, new_messages: Sequence[ChatMessage]) -> npt.NDArray[np.int32]:
        """Add the messages since the last turn. The first time these are all messages, the system message first.

        Returns:
            int32[n]: the token ids to send to the engine.
        """
        if self._history == "template":
            self._follow_template(new_messages)
        elif not self._ledgers:
            self._messages = self._codec.shielded(new_messages)
            self._ledgers.append(TokenLedger(self._codec.prompt(new_messages, self._tools)))
        else:
            self._follow_turn(new_messages, self._ledgers[-1])
        return self._ledgers[-1].input_ids()

    def _follow_turn(self, new_messages: Sequence[ChatMessage], ledger: TokenLedger) -> None:
        """Continue with what the template writes after the newest turn."""
        new = self._codec.shielded(new_messages)
        following = self._codec.after(self._messages, self._turn, new, self._tools)
        ledger.append_context(self._codec.unsampled(following, ledger.last_token))
        self._messages += [*self._codec.shielded([self._turn]), *new]

    def _follow_template(self, new_messages: Sequence[ChatMessage]) -> None:
        """Continue with the template's own rendering, in a new segment where that rewrites what was sampled."""
        self._messages += [*([self._turn] if self._turn else []), *new_messages]
        rendered = self._codec.prompt(self._messages, self._tools)
        ledger = self._ledgers[-1] if self._ledgers else None
        if ledger is not None and ledger.is_start_of(rendered):
            ledger.append_context(rendered[len(ledger) :])
        elif (
            ledger is not None
            and ledger.differs_in_turn(rendered)
            and (following := self._codec.control.same_text_after(ledger.token_ids, rendered))
        ):
            ledger.append_context(following)
        else:
            self._ledgers.append(TokenLedger(rendered))

    def record(self, generation: Generation, seconds: float = 0.0) -> ParsedTurn:
        """Record what the engine sampled for the last prompt, and parse it.

        Raises:
            ValueError: the generation's arrays differ in length.
        """
        sampled = generation.token_ids.tolist()
        turn = self._codec.parse(sampled, self._tools)
        unknown = len(self._codec.unknown_ids(sampled))
        self._ledgers[-1].append_policy(generation, [call.status for call in turn.calls], seconds, unknown)
        answered = self._history == "append" or not self._codec.takes_answers_to_text
        self._turn = turn.as_answered_message() if answered else turn.as_message()
        sampled_with = generation.weight_versions
        self.newest_version = max(self.newest_version, int(sampled_with.max()))
        oldest = int(sampled_with.min()) if generation.prefix_version is None else generation.prefix_version
        self.oldest_version = oldest if self.oldest_version == CONTEXT_VERSION else min(self.oldest_version, oldest)
        return turn

    @property
    def known_tokens(self) -> int:
        """Tokens at the beginning of the last prompt that were sent or sampled in the turn before."""
        turns = self._ledgers[-1].turns
        return turns[-1].end if turns else 0

    @property
    def turns(self) -> list[Turn]:
        """Every turn recorded so far, in order."""
        return [turn for ledger in self._ledgers for turn in ledger.turns]

    def segments(self) -> list[TokenSegment]:
        """The segments so far that have at least one turn."""
        return [ledger.to_segment() for ledger in self._ledgers if ledger.turns]
