"""Evaluation: how episodes are scored, and the judge of NL assertions.

Invariant: settings of the judge are refused where no judge is asked.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rollout_service.config.price import Price
from rollout_service.config.secret_free import ModelArguments, Url, VariableName
from rollout_service.config.section import Section


class Judge(Section):
    """The language model that judges NL assertions."""

    model: str | None = Field(None, description="Name of the model for litellm; null: τ²'s default.")
    base_url: Url | None = Field(None, description="URL of an OpenAI-compatible endpoint; null: the provider's own.")
    api_key_var: VariableName | None = Field(None, description="NAME of the environment variable that holds the key.")
    arguments: ModelArguments = Field(
        default_factory=lambda: {"temperature": 0.0}, description="Further arguments of litellm.completion."
    )
    retries: int = Field(
        10,
        ge=0,
        description="Retries of a failed request before the episode fails; the conversation is kept meanwhile.",
    )
    price: Price = Price()
    max_concurrency: int = Field(
        256,
        ge=1,
        description="Most requests in flight towards the judge's endpoint, all environment actors together. A judge "
        "that is the user's model at the user's address shares the user's places, and this counts for nothing.",
    )


class Evaluation(Section):
    """How episodes are scored."""

    type: Literal["env", "communicate", "action", "all", "nl_assertions", "all_with_nl_assertions"] = Field(
        "all", description="Which of τ²'s evaluators make the reward, as τ² names them."
    )
    mode: Literal["official", "fast", "check"] = Field(
        "fast",
        description="official: τ²'s evaluator replays the conversation; fast: it sees the episode's own environment "
        "instead; check: both, and a difference ends the collection.",
    )
    judge: Judge = Judge()

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if self.type in ("env", "communicate", "action"):
            why = f"evaluation.type is {self.type}, for which no judge is asked"
            self.judge.check_unset(Judge.model_fields, "evaluation.judge.", why, "Leave it out.")
        return self
