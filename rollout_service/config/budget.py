"""Budget: how much may be spent.

Invariant: a budget only ends a collection early. It never changes an episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from rollout_service.config.refusal import Refused
from rollout_service.config.section import Seconds, Section


class Budget(Section):
    """Limits of what is spent. At one of them no further group of episodes begins; those that have begun are completed
    and delivered."""

    usd: float | None = Field(
        None,
        gt=0,
        description="US dollars for the user simulator, its reviewer and the judge. An episode whose cost is not known "
        "ends it, too.",
    )
    user_tokens: int | None = Field(
        None, ge=1, description="Tokens of the user simulator, those sent and those it wrote."
    )
    policy_tokens: int | None = Field(None, ge=1, description="Tokens that the policy samples.")
    episodes: int | None = Field(None, ge=1, description="Episodes that begin; the last group is completed.")
    wall_seconds: Seconds | None = Field(None, description="Seconds since the collection, or the service, began.")

    @model_validator(mode="before")
    @classmethod
    def _check_something_may_begin(cls, limits: Any) -> Any:
        for name, value in limits.items() if isinstance(limits, Mapping) else ():
            if not isinstance(value, bool) and value == 0:
                why, remedy = f"is {value}: nothing would ever begin.", "Set more, or leave it out for no limit."
                raise Refused(why, remedy, str(name))
        return limits

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return any(getattr(self, name) is not None for name in type(self).model_fields)

    @property
    def of_user(self) -> list[str]:
        """The limits that are set and have an effect only where a language model plays the user."""
        return [name for name in ("usd", "user_tokens") if getattr(self, name) is not None]


NO_LIMIT = Budget()
