"""TokenLedger: the append-only token record of one segment.

Invariant: the input of turn k+1 starts with the input of turn k, followed by the tokens sampled in turn k. Nothing is
ever removed, replaced or encoded again, so training sees exactly what the engine saw and sampled.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rollout_service.policy.base import Generation
from rollout_service.record.trajectory import CONTEXT_VERSION, TokenSegment, Turn

BYTES_PER_TOKEN = 13
"""Bytes of memory per token: id, loss mask, log-prob and weight version."""


class TokenLedger:
    """Collects the context and policy tokens of one segment, in the engine's order."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        """Open the segment with its prompt.

        Args:
            prompt_ids: int[n], n > 0. All of them are context tokens.

        Raises:
            ValueError: the prompt is empty.
        """
        if len(prompt_ids) == 0:
            raise ValueError("a segment needs a prompt of at least one token")
        self._ids, self._mask, self._logprobs, self._versions = array("i"), array("B"), array("f"), array("i")
        self.append_context(prompt_ids)
        self._prompt_length = len(self._ids)
        self._turns: list[Turn] = []

    def __len__(self) -> int:
        return len(self._ids)

    def is_start_of(self, token_ids: Sequence[int]) -> bool:
        """Whether `token_ids` starts with the tokens so far."""
        return array("i", token_ids[: len(self._ids)]) == self._ids

    def differs_in_turn(self, token_ids: Sequence[int]) -> bool:
        """Whether the first token in which `token_ids` differs from the tokens so far was sampled."""
        common = min(len(self._ids), len(token_ids))
        own, other = np.array(self._ids[:common], np.int32), np.asarray(token_ids[:common], np.int32)
        different = np.flatnonzero(own != other)
        return len(different) > 0 and self._mask[int(different[0])] == 1

    @property
    def token_ids(self) -> array[int]:
        """All tokens so far; do not change them."""
        return self._ids

    @property
    def last_token(self) -> int:
        """The newest token's id."""
        return self._ids[-1]

    @property
    def turns(self) -> list[Turn]:
        """The turns so far, in order."""
        return self._turns

    def input_ids(self) -> npt.NDArray[np.int32]:
        """The engine's input for the next turn: int32[n], a copy."""
        return np.array(self._ids, dtype=np.int32)

    def append_context(self, token_ids: Sequence[int]) -> None:
        """Append tokens that the policy did not sample (mask 0)."""
        self._append(token_ids, 0, 0.0, CONTEXT_VERSION)

    def append_policy(
        self, generation: Generation, tool_calls: Sequence[str] = (), seconds: float = 0.0, unknown_tokens: int = 0
    ) -> Turn:
        """Append one turn's sampled tokens (mask 1) with the engine's log-probs and versions.

        Raises:
            ValueError: the generation's three arrays differ in length, or it holds no token.
        """
        generation.check()
        start = len(self._ids)
        self._append(generation.token_ids, 1, generation.logprobs, generation.weight_versions)
        turn = Turn(
            start=start,
            end=len(self._ids),
            finish_reason=generation.finish_reason,
            cached_tokens=generation.cached_tokens,
            tool_calls=list(tool_calls),
            policy_seconds=seconds,
            prefix_version=generation.prefix_version,
            unknown_tokens=unknown_tokens,
            queue_seconds=generation.queue_seconds,
        )
        self._turns.append(turn)
        return turn

    def to_segment(self) -> TokenSegment:
        """The record up to the last sampled token, as arrays. Context after it was never sent to the engine.

        The ledger may grow later. The segment does not change then, but its turns are the same objects.

        Raises:
            ValueError: nothing was sampled yet.
        """
        if not self._turns:
            raise ValueError("a segment needs at least one turn")
        end = self._turns[-1].end
        return TokenSegment(
            token_ids=np.array(self._ids[:end], dtype=np.int32),
            loss_mask=np.array(self._mask[:end], dtype=np.uint8),
            logprobs=np.array(self._logprobs[:end], dtype=np.float32),
            weight_versions=np.array(self._versions[:end], dtype=np.int32),
            prompt_length=self._prompt_length,
            turns=list(self._turns),
        )

    def _append(
        self, token_ids: Sequence[int] | npt.NDArray[np.int32], mask: int, logprobs: Any, versions: Any
    ) -> None:
        count = len(token_ids)
        for kept, values in (
            (self._ids, token_ids),
            (self._mask, mask),
            (self._logprobs, logprobs),
            (self._versions, versions),
        ):
            if isinstance(values, int | float):
                kept.frombytes(array(kept.typecode, [values]).tobytes() * count)
            else:
                kept.frombytes(np.asarray(values, dtype=kept.typecode).tobytes())
