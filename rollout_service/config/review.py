"""Review: which episodes τ²'s own reviewer looks at, and the language model that it asks.

Invariant: settings of the reviewer are refused where it looks at no episode.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rollout_service.config.price import Price
from rollout_service.config.secret_free import ModelArguments, Url, VariableName
from rollout_service.config.section import Section


class Review(Section):
    """The language model with which τ²'s own reviewer looks for errors of the user simulator. Only upstream τ²-bench
    has this reviewer."""

    share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the episodes that are reviewed. The same ones are chosen again at a retry or resume.",
    )
    model: str | None = Field(None, description="Name of the model for litellm; null: τ²'s default.")
    base_url: Url | None = Field(None, description="URL of an OpenAI-compatible endpoint; null: the provider's own.")
    api_key_var: VariableName | None = Field(None, description="NAME of the environment variable that holds the key.")
    arguments: ModelArguments = Field(default_factory=dict, description="Further arguments of litellm.completion.")
    retries: int = Field(3, ge=0, description="Retries of a failed request before the episode stays without a review.")
    price: Price = Price()

    @property
    def is_on(self) -> bool:
        """Whether any episode is reviewed."""
        return self.share > 0

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        if not self.is_on:
            why = "user.review.share is 0, so nothing is reviewed"
            self.check_unset(type(self).model_fields, "user.review.", why, "Set user.review.share, or leave it out.")
        return self
