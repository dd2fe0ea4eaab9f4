"""Price: what a model's tokens cost, where litellm does not know it or the contract says otherwise.

Invariant: a price is whole: both parts are set, or none.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rollout_service.config.refusal import Refused
from rollout_service.config.section import Section


class Price(Section):
    """The price of a language model."""

    prompt_usd: float | None = Field(
        None, ge=0, description="US dollars for a million prompt tokens; null: as litellm's price list has it."
    )
    completion_usd: float | None = Field(
        None, ge=0, description="US dollars for a million tokens that the model writes; null: as litellm has it."
    )

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        if (self.prompt_usd is None) != (self.completion_usd is None):
            missing = "prompt_usd" if self.prompt_usd is None else "completion_usd"
            raise Refused("is not set, but the other half of the price is.", "Set both; 0 says free.", missing)
        return self

    def of(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """US dollars for so many tokens. None: no price is set, or an API that is not free reported no tokens."""
        if self.prompt_usd is None or self.completion_usd is None:
            return None
        if not prompt_tokens and not completion_tokens and self.prompt_usd + self.completion_usd > 0:
            return None  # every request has tokens
        return (prompt_tokens * self.prompt_usd + completion_tokens * self.completion_usd) / 1e6
