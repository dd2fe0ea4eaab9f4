"""Sampling: how the policy samples a turn.

Invariant: every engine computes with exactly these numbers; none of them is rounded or replaced.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

LARGEST_INT = 2**31 - 1
"""Engines keep these numbers as int32."""

_SMALLEST = 1e-6
"""SGLang silently samples greedily at a smaller temperature, and a much smaller top-p becomes 0 in float32."""


class Sampling(BaseModel):
    """How the policy samples, in SGLang's names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(1.0, ge=0.0, le=1e6, description="Temperature; 0 is greedy, any other is at least 1e-6.")
    top_p: float = Field(
        1.0, ge=_SMALLEST, le=1.0, description="Sample from the likeliest tokens with this probability in all."
    )
    top_k: int = Field(
        -1, ge=-1, le=LARGEST_INT, description="Sample from this number of likeliest tokens; -1 or 0: from all."
    )
    max_new_tokens: int = Field(
        2048, ge=1, le=LARGEST_INT, description="Most tokens of a turn. A turn cut by it is marked `length`."
    )
    stop_token_ids: tuple[Annotated[int, Field(strict=True, ge=0, le=LARGEST_INT)], ...] = Field(
        (),
        max_length=1024,
        description="Token ids of the model's vocabulary that end a turn, besides those that the model names.",
    )
    ignore_eos: bool = Field(
        False, strict=True, description="true: sample max_new_tokens tokens whatever comes, as benchmarks do."
    )

    @field_validator("temperature", "top_p", "top_k", "max_new_tokens", mode="before")
    @classmethod
    def _check_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"{value} is not a number")
        return value

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, value: float) -> float:
        if 0 < value < _SMALLEST:
            raise ValueError(f"{value} is neither 0, which is greedy, nor at least {_SMALLEST}")
        return value

    @field_validator("top_k")
    @classmethod
    def _no_limit(cls, value: int) -> int:
        return value or -1  # SGLang refuses 0
