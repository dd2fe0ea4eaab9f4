"""What is asked of the service: a collection, and each of its episodes.

Invariant: plain values, cheap to send. An episode keeps its identity and its seed through every attempt.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rollout_service.errors import Fault
from rollout_service.policy.base import Sampling
from rollout_service.trajectory import Outcome, TaskRef, Trajectory


@dataclass(frozen=True, slots=True)
class CollectionRequest:
    """A request for episodes. A field that is None takes the service's own setting."""

    n: int | None = None
    """Episodes; None: every task of the selection once, times the group size."""
    group_size: int = 1
    domain: str | dict[str, float] | None = None
    split: str | None = None
    ids: list[str] | None = None
    shuffle: bool | None = None
    seed: int | None = None
    """Given: tasks and episodes follow from it alone. None: go on where the last collection of this kind stopped."""
    groups_per_update: int | None = None
    """Groups that the trainer takes between two weight updates, where `service.max_staleness` is to hold back groups
    that would come too late; None: those that come too late are found out when they come."""
    sampling: Sampling | None = None
    """How the policy samples for these episodes; None: as the service is configured."""


SELECTION = tuple(
    item.name
    for item in dataclasses.fields(CollectionRequest)
    if item.name not in ("n", "group_size", "groups_per_update")
)
"""Names of the fields that choose tasks, and how they are played."""


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """Everything that tells one episode from another."""

    trajectory_id: str
    collection_id: str
    group_id: str
    sample_index: int
    task: TaskRef
    seed: int
    attempt: int = 1
    waited_seconds: float = 0.0
    """From the collection's request until the episode starts, or as much of it as is over. A span and no time of day:
    clocks differ between machines, and are set."""
    min_version: int = 0
    """Weights older than this may not sample for it: the trajectory would be too old when it is done."""
    sampling: Sampling | None = None
    """How its turns are sampled; None: as the service is configured."""

    def identity(self) -> dict[str, Any]:
        """The fields that its trajectory takes over as they are."""
        own = ("waited_seconds", "min_version", "sampling")
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in own}


def unfinished(request: EpisodeRequest, fault: Fault) -> Trajectory:
    """The trajectory of an episode of which nothing came back."""
    return Trajectory(
        **request.identity(), outcome=Outcome.ABORTED, termination_reason="fault", reward=None, fault=fault
    )
