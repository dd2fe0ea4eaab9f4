"""User: the user simulator, scripted or played by a language model.

Invariant: a named model is used, and settings of the kind of user that does not play are refused.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rollout_service.config.price import Price
from rollout_service.config.refusal import Refused, check_speaks
from rollout_service.config.review import Review
from rollout_service.config.script import UserScript
from rollout_service.config.secret_free import ModelArguments, Url, VariableName
from rollout_service.config.section import Seconds, Section
from rollout_service.config.user_server import USER_KEY_VAR, UserServer


class User(Section):
    """The user simulator."""

    kind: Literal["scripted", "llm"] | None = Field(
        None, description="Who plays the user; null: llm when user.model or user.serve is set, else scripted."
    )
    model: str | None = Field(None, description="Name of the model for litellm, such as openai/gpt-4.1-mini.")
    base_url: Url | None = Field(None, description="URL of an OpenAI-compatible endpoint; null: the provider's own.")
    api_key_var: VariableName | None = Field(None, description="NAME of the environment variable that holds the key.")
    temperature: float | None = Field(0.0, ge=0.0, description="Sampling temperature; null: the provider's default.")
    arguments: ModelArguments = Field(default_factory=dict, description="Further arguments of litellm.completion.")
    timeout_seconds: Seconds = Field(60.0, description="Seconds for one request.")
    retries: int = Field(5, ge=0, description="Retries of a failed request before the episode fails.")
    max_retry_wait_seconds: Seconds = Field(
        60.0, description="Most seconds between two retries, also where the provider's Retry-After asks for more."
    )
    price: Price = Price()
    max_concurrency: int = Field(
        256,
        ge=1,
        description="Most requests in flight towards the user's endpoint, all environment actors together. The service "
        "finds by itself how many of them the endpoint bears, see docs/user_simulators.md.",
    )
    serve: UserServer | None = Field(
        None, description="A model that the service itself serves as the user simulator; null: it serves none."
    )
    review: Review = Review()
    script: UserScript = UserScript()

    @field_validator("kind", mode="before")
    @classmethod
    def _check_kind(cls, value: Any) -> Any:
        return check_speaks(value, "user.kind", "scripted or llm")

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.kind == "llm" and not self.model and self.serve is None:
            raise Refused("is llm, but user.model is not set.", "Name a model, or set TAU2_USER_MODEL.", "user.kind")
        if self.serve is not None:
            why = "the service itself serves the model that user.serve names"
            self.check_unset({"model", "base_url", "api_key_var"}, "user.", why, "Leave out one of them.")
        return self

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        if self.resolved_kind == "llm":
            remedy = "Leave it out, or set user.kind to scripted and leave out the model."
            self.check_unset({"script"}, "user.", "a language model plays the user", remedy)
            return self
        why = "user.kind is scripted" if self.kind else "user.model is not set, so the user is scripted"
        remedy = "Leave it out, or set user.kind to llm and user.model to a litellm model name."
        self.check_unset(type(self).model_fields.keys() - {"kind", "script"}, "user.", why, remedy)
        return self

    @property
    def resolved_kind(self) -> Literal["scripted", "llm"]:
        """`kind`, or what follows from the model when it is null."""
        return self.kind or ("llm" if self.model or self.serve is not None else "scripted")

    @property
    def key_var(self) -> str | None:
        """NAME of the environment variable that holds the key; None: no key is sent."""
        return self.api_key_var if self.serve is None else USER_KEY_VAR

    @property
    def sent(self) -> dict[str, Any]:
        """What the model is given beside messages and tools. There is no secret in it."""
        return self.arguments if self.temperature is None else {**self.arguments, "temperature": self.temperature}
