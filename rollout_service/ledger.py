"""TokenLedger: the append-only token record of one segment.

Invariant: what the engine is sent at turn k+1 starts with what it was sent at turn k followed by what it sampled
there. Nothing is ever removed, replaced, or encoded a second time, so what is trained is what was seen and sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rollout_service.policy.base import Generation
from rollout_service.trajectory import CONTEXT_VERSION, TokenSegment, Turn


class TokenLedger:
    """Collects context and policy tokens of one segment, in the order in which the engine sees them."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        """Open the segment with its prompt, int[n], n > 0; all of it context."""
        if len(prompt_ids) == 0:
            raise ValueError("a segment needs a prompt of at least one token")
        self._ids = list(prompt_ids)
        self._mask = [0] * len(self._ids)
        self._logprobs = [0.0] * len(self._ids)
        self._versions = [CONTEXT_VERSION] * len(self._ids)
        self._prompt_length = len(self._ids)
        self._turns: list[Turn] = []

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def token_ids(self) -> list[int]:
        """The tokens so far. Read it, don't write to it."""
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
        """What the engine is sent for the next turn: int32[n], a copy."""
        return np.asarray(self._ids, dtype=np.int32)

    def append_context(self, token_ids: Sequence[int]) -> None:
        """Append tokens that the policy did not sample (mask 0)."""
        self._ids.extend(token_ids)
        self._mask.extend([0] * len(token_ids))
        self._logprobs.extend([0.0] * len(token_ids))
        self._versions.extend([CONTEXT_VERSION] * len(token_ids))

    def append_policy(self, generation: Generation, tool_calls: Sequence[str] = (), seconds: float = 0.0) -> Turn:
        """Append one turn's sampled tokens (mask 1) with the log-probs and versions that the engine gave for them.

        Raises:
            ValueError: the generation's three arrays differ in length, or it holds no token.
        """
        generation.check()
        start = len(self._ids)
        self._ids.extend(generation.token_ids.tolist())
        self._mask.extend([1] * len(generation.token_ids))
        self._logprobs.extend(generation.logprobs.tolist())
        self._versions.extend(generation.weight_versions.tolist())
        turn = Turn(
            start=start,
            end=len(self._ids),
            finish_reason=generation.finish_reason,
            cached_tokens=generation.cached_tokens,
            tool_calls=list(tool_calls),
            policy_seconds=seconds,
        )
        self._turns.append(turn)
        return turn

    def to_segment(self) -> TokenSegment:
        """The record up to the last sampled token, as arrays: context after it was never sent to the engine.

        The ledger can go on growing; the segment does not follow it, but its turns are the same objects.

        Raises:
            ValueError: nothing was sampled yet.
        """
        if not self._turns:
            raise ValueError("a segment needs at least one turn")
        end = self._turns[-1].end
        return TokenSegment(
            token_ids=np.asarray(self._ids[:end], dtype=np.int32),
            loss_mask=np.asarray(self._mask[:end], dtype=np.uint8),
            logprobs=np.asarray(self._logprobs[:end], dtype=np.float32),
            weight_versions=np.asarray(self._versions[:end], dtype=np.int32),
            prompt_length=self._prompt_length,
            turns=list(self._turns),
        )
