"""Limits: what ends an episode early.

Invariant: an episode that a limit ends is `truncated`, and its termination reason says which limit it was.
"""

from __future__ import annotations

from pydantic import Field

from rollout_service.config.section import Seconds, Section


class Limits(Section):
    """What ends an episode as `truncated`, each with its own reason."""

    max_steps: int = Field(200, ge=1, description="Most of τ²'s steps: messages and tool results.")
    max_errors: int = Field(10, ge=1, description="Most tool errors, agent's and user's together.")
    max_turns: int = Field(30, ge=1, description="Most policy turns.")
    wall_seconds: Seconds = Field(
        1800.0, description="Most seconds of an episode. One that takes longer has no reward: being slow is no failure."
    )
    stuck_seconds: Seconds = Field(
        300.0,
        description="Seconds beyond wall_seconds that an episode's thread may take to end, with the evaluation. After "
        "that it hangs: the episode is tried again elsewhere, and its environment actor is replaced once the other "
        "episodes there have ended.",
    )
