"""Script: how a scripted policy or a scripted user behaves.

Invariant: the default plays the task's gold actions without a fault and without delay.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rollout_service.config.section import Pause, Section


class Latency(Section):
    """How long each turn of the scripted policy or user takes, in seconds."""

    distribution: Literal["constant", "uniform", "exponential"] = Field(
        "constant", description="How the seconds of a turn are drawn."
    )
    mean: Pause = Field(0.0, description="Mean seconds of a turn.")
    spread: Pause = Field(0.0, description="Half the width of the uniform distribution, in seconds.")

    @model_validator(mode="after")
    def _check_spread(self) -> Self:
        if self.distribution != "uniform":
            why = f"the distribution is {self.distribution}"
            self.check_unset({"spread"}, "", why, "Set distribution: uniform beside it, or leave it out.")
        return self


class Script(Section):
    """How a scripted side misbehaves on purpose. Each probability is drawn per action, from the episode's seed."""

    wrong_argument: float = Field(
        0.0, ge=0.0, le=1.0, description="Probability that an argument of the action is altered."
    )
    malformed_call: float = Field(
        0.0, ge=0.0, le=1.0, description="Probability that the policy first writes the call as broken JSON."
    )
    early_stop: float = Field(
        0.0, ge=0.0, le=1.0, description="Probability that this action and all that follow are left out."
    )
    chatter: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Probability that the policy first says something idle, or the user adds noise.",
    )
    calls_per_turn: int = Field(1, ge=1, description="Most consecutive actions of the policy that share a turn.")
    latency: Latency = Latency()


class UserScript(Script):
    """How the scripted user speaks, and how it misbehaves on purpose."""

    own_words: bool = Field(
        False,
        description="Whether the user first says who it is and why it calls, in the first person and in words that "
        "differ with the episode's seed; false: only the scenario's reason for the call, as it is written there. "
        "Neither says the scenario's task_instructions.",
    )
