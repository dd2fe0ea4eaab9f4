"""Service: size and place of the running service.

Invariant: name and namespace identify one service in a cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rollout_service.config.refusal import Refused
from rollout_service.config.section import MOST_PROCESSES, Pause, Seconds, Section

SHORTEST_LEASE_SECONDS = 4.0
"""A client that is alive renews its lease about once in a quarter of it. Busy processes are late by a second or two."""


class ActorAutoscaling(Section):
    """How the number of environment actors follows the episodes and the cluster's free CPUs."""

    min_actors: int = Field(1, ge=1, description="Fewest environment actors.")
    max_actors: int = Field(..., ge=1, le=MOST_PROCESSES, description="Most environment actors.")
    idle_seconds: Pause = Field(
        60.0,
        description="Seconds for which fewer actors must be enough before some are removed. An actor that is removed "
        "ends its episodes first.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.max_actors < self.min_actors:
            raise Refused(
                f"is {self.max_actors}, below min_actors, which is {self.min_actors}.",
                "Raise max_actors, or lower min_actors.",
                "service.autoscaling.max_actors",
            )
        return self


class Service(Section):
    """Size and place of the running service."""

    name: str = Field(
        "rollout", min_length=1, description="Name of the coordinator actor; a cluster has one service of each name."
    )
    namespace: str = Field("rollout_service", min_length=1, description="Ray namespace of the service's actors.")
    actors: int | None = Field(
        None,
        ge=1,
        le=MOST_PROCESSES,
        description="Number of environment actors; null: one per CPU of the cluster, at most 64.",
    )
    autoscaling: ActorAutoscaling | None = Field(
        None,
        description="Bounds of a number of actors that follows the load, in place of a fixed one; null: it is fixed.",
    )
    slots: int = Field(16, ge=1, le=1024, description="Episodes that one actor runs at a time.")
    max_attempts: int = Field(3, ge=1, description="Most attempts at an episode that infrastructure faults stop.")
    max_losses: int = Field(
        10,
        ge=1,
        description="Most environment actors that an episode may lose; such attempts do not count as attempts, but an "
        "episode that loses so many actors is given up, because it may be what kills them.",
    )
    silence_seconds: Seconds = Field(
        25.0,
        ge=1.0,
        description="Seconds without a sign of life after which an environment actor is replaced. Its episodes are "
        "played elsewhere, which does not count as an attempt.",
    )
    give_up_seconds: Seconds = Field(
        600.0,
        description="Longest time that one fault may stop all episodes of a collection, or keep all environment actors "
        "from starting. Until then the service tries again after growing pauses; then the collection ends with that "
        "fault.",
    )
    max_buffered_groups: int = Field(
        64, ge=1, description="Most finished groups that wait to be taken; with more, no new group is started."
    )
    max_staleness: int | None = Field(
        None,
        ge=0,
        description="Most staleness of a trajectory when it is delivered: the current weight version minus its oldest; "
        "null: any.",
    )
    late: Literal["drop", "deliver"] = Field(
        "drop",
        description="What happens to a trajectory above max_staleness; drop: its episode is made again with newer "
        "weights, and one that runs is ended as soon as it cannot be in time any more, which does not count as an "
        "attempt; deliver: it is delivered and counted.",
    )
    min_group_size: Annotated[int, Field(ge=1)] | Literal["any"] = Field(
        "any",
        description="Fewest trajectories with a score of a group that is delivered as data. A group with fewer is "
        "withheld: reported and counted, but not given; groups that are smaller than this must be whole. any: every "
        "group is given, and a failed episode is in it as an aborted trajectory.",
    )
    lease_seconds: Seconds = Field(
        20.0,
        description="Silence after which a client counts as gone: its collections are cancelled, or wait for a reader "
        "if there is a journal, and a service that it started for itself ends. Clients renew their leases four times "
        "as often.",
    )
    keep_collections_seconds: Seconds = Field(
        86_400.0,
        description="How long a collection whose reader is gone waits in the journal for another one; then it is "
        "thrown away.",
    )
    journal: str | None = Field(
        None,
        min_length=1,
        description="Folder where the service writes down what it needs to go on after the coordinator's death; null: "
        "collections end with the coordinator.",
    )
    journal_form: Literal["sqlite", "log"] = Field(
        "sqlite",
        description="Form of the journal; sqlite: a database, which must lie on a local disk; log: files that are only "
        "appended to, for network file systems and mounted buckets.",
    )
    metrics: bool = Field(
        True,
        description="Whether the service's actors export metrics through Ray, for Prometheus; see docs/metrics.md.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level of the lines that the service's processes log."
    )

    @field_validator("journal")
    @classmethod
    def _check_journal(cls, path: str | None) -> str | None:
        if path is not None and "://" in path:
            raise Refused(f"is {path!r}, which is no folder.", "Give a folder; one on shared storage must be mounted.")
        if path is not None and not Path(path).is_absolute():
            raise Refused(f"is {path!r}, which depends on the folder of a process.", "Give an absolute path.")
        return path

    @model_validator(mode="after")
    def _check_kept(self) -> Self:
        if self.journal is None:
            only = {"keep_collections_seconds", "journal_form"}
            self.check_unset(only, "service.", "there is no journal", "Set service.journal, or leave it out.")
        return self

    @model_validator(mode="after")
    def _check_actors(self) -> Self:
        if self.autoscaling is not None:
            why = "service.autoscaling says how many environment actors there are"
            self.check_unset({"actors"}, "service.", why, "Leave out one of them.")
        return self

    @field_validator("lease_seconds")
    @classmethod
    def _check_lease(cls, seconds: float) -> float:
        if seconds < SHORTEST_LEASE_SECONDS:
            raise Refused(
                f"is {seconds:g}: a lease so short would lapse while its client is merely busy.",
                f"Set at least {SHORTEST_LEASE_SECONDS:g}.",
            )
        return seconds
