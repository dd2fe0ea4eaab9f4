"""The contract between an episode and whatever samples its turns.

Invariant: a `Generation`'s three arrays are aligned and come from the engine together. No layer between the engine
and the ledger may decode, trim or re-encode them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator


class Sampling(BaseModel):
    """How the policy samples, in SGLang's names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(1.0, ge=0.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(-1, ge=-1, description="-1 or 0: no limit")
    max_new_tokens: int = Field(2048, ge=1, description="per turn; a turn cut by it is marked `length`")
    stop_token_ids: tuple[int, ...] = Field((), description="end a turn, besides those that the model itself names")
    ignore_eos: bool = Field(False, description="sample max_new_tokens whatever comes, as benchmarks do")

    @field_validator("top_k")
    @classmethod
    def _no_limit(cls, value: int) -> int:
        return value or -1  # SGLang refuses 0


@dataclass(slots=True, eq=False)
class Generation:
    """What the engine sampled for one turn."""

    token_ids: npt.NDArray[np.int32]
    """int32[m], the stop token included when there was one."""
    logprobs: npt.NDArray[np.float32]
    """float32[m], natural log, of the sampled tokens under softmax(logits / temperature): before top-p and top-k."""
    weight_versions: npt.NDArray[np.int32]
    """int32[m], the version of the weights that sampled each token."""
    finish_reason: str
    """`stop` or `length`; from an engine also `abort`: interrupted, see `rollout_service.policy.resume`."""
    prompt_tokens: int = 0
    """Length of the prompt as the engine counted it."""
    cached_tokens: int = 0
    """Of those, taken from the prefix cache."""

    def check(self) -> None:
        """Raise `ValueError` unless this is a whole turn: aligned arrays, not empty, finite, a known finish reason."""
        lengths = {len(self.token_ids), len(self.logprobs), len(self.weight_versions)}
        if len(lengths) != 1:
            raise ValueError(
                f"the engine returned {len(self.token_ids)} tokens, {len(self.logprobs)} log-probs and "
                f"{len(self.weight_versions)} weight versions: they must be of one length"
            )
        if len(self.token_ids) == 0:
            raise ValueError("the engine returned no token")
        if not np.isfinite(self.logprobs).all():
            raise ValueError("the engine returned a log-prob that is not a finite number")
        if self.finish_reason not in ("stop", "length"):
            raise ValueError(f"finish_reason {self.finish_reason!r} is neither 'stop' nor 'length'")


class Policy(Protocol):
    """Samples turns. Implementations are safe to share between the episodes of one event loop."""

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, session_id: str, metadata: dict[str, Any]
    ) -> Generation:
        """Sample one turn.

        Args:
            input_ids: int32[n], everything that the engine is to see.
            sampling: how to sample; the engine adds its own stop tokens.
            session_id: one episode's calls share it; a router may keep them on one replica for its prefix cache.
            metadata: what the episode knows of itself: `task`, `agent`, `seed` and `turn`, on which the scripted engine
                acts, and `min_version`: weights older than that may not sample the turn.

        Raises:
            EpisodeFault: of kind `policy`, when no tokens could be had.
            asyncio.CancelledError: the caller cancelled; the request is aborted in the engine.
        """
        ...
