"""Tape: where the answers of the user simulator's and the judge's model are recorded, and replayed from.

Invariant: a tape that is named is used or refused, never left aside without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rollout_service.config.refusal import Refused
from rollout_service.config.section import Section


class Tape(Section):
    """The tape of the user simulator's, its reviewer's and the judge's answers."""

    path: str | None = Field(
        None,
        description="Absolute path of the tape's folder; on a cluster, every node must see it there.",
    )
    mode: Literal["off", "record", "replay", "replay_or_record"] = Field(
        "off",
        description="record: every answer is asked for and stored; replay: every answer comes from the tape, and a "
        "missing one is a fault; replay_or_record: what is missing is asked for and stored.",
    )
    latency: Literal["none", "recorded"] = Field(
        "none", description="How long a replayed answer takes: no time, or as long as when it was recorded."
    )

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str | None) -> str | None:
        if path is not None and not Path(path).is_absolute():
            raise Refused(f"is {path!r}, which depends on the folder of a process.", "Give an absolute path.")
        return path

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        if self.mode != "off" and not self.path:
            raise Refused(f"is {self.mode}, but there is no tape.path.", "Name the tape's folder.", "tape.mode")
        if self.path and "mode" not in self.model_fields_set:
            raise Refused("is set, but tape.mode is not.", "Set tape.mode, for example to record.", "tape.path")
        if self.mode == "record":
            self.check_unset({"latency"}, "tape.", "tape.mode is record, which replays nothing", "Leave it out.")
        return self

    @property
    def is_on(self) -> bool:
        """Whether answers are recorded or replayed."""
        return self.mode != "off"

    @property
    def asks_nobody(self) -> bool:
        """Whether all answers come from the tape, so that no model, key or address is needed."""
        return self.mode == "replay"
