"""Sampling: how the policy samples a turn.

Invariant: every number is one that each engine computes with as it stands.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

LARGEST_INT = 2**31 - 1
"""Engines keep these numbers as int32."""

_SMALLEST = 1e-6
"""A smaller temperature is greedy to SGLang, without a word; a smaller top-p is 0 in float32 soon."""


class Sampling(BaseModel):
    """How the policy samples, in SGLang's names. Every number is one that each engine computes with as it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(1.0, ge=0.0, le=1e6, description="0 is greedy; else 1e-6 at least")
    top_p: float = Field(1.0, ge=_SMALLEST, le=1.0)
    top_k: int = Field(-1, ge=-1, le=LARGEST_INT, description="-1 or 0: no limit")
    max_new_tokens: int = Field(2048, ge=1, le=LARGEST_INT, description="per turn; a turn cut by it is marked `length`")
    stop_token_ids: tuple[Annotated[int, Field(strict=True, ge=0, le=LARGEST_INT)], ...] = Field(
        (), max_length=1024, description="of the model's vocabulary; end a turn, besides those that the model names"
    )
    ignore_eos: bool = Field(False, strict=True, description="sample max_new_tokens whatever comes, as benchmarks do")

    @field_validator("temperature", "top_p", "top_k", "max_new_tokens", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"{value} is not a number")
        return value

    @field_validator("temperature")
    @classmethod
    def _greedy_or_warm(cls, value: float) -> float:
        if 0 < value < _SMALLEST:
            raise ValueError(f"{value} is neither 0, which is greedy, nor {_SMALLEST} at least")
        return value

    @field_validator("top_k")
    @classmethod
    def _no_limit(cls, value: int) -> int:
        return value or -1  # SGLang refuses 0
