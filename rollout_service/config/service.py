"""Service: size and place of the running service.

Invariant: name and namespace identify one service in a cluster.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollout_service.config.section import MOST_PROCESSES, Section


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
    slots: int = Field(16, ge=1, le=1024, description="Episodes that one actor runs at a time.")
    max_attempts: int = Field(3, ge=1, description="Most attempts at an episode that infrastructure faults stop.")
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
        "weights; deliver: it is delivered and counted.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level of the lines that the service's processes log."
    )
