"""What is asked of the service: a collection, and each of its episodes.

Invariant: plain values, cheap to send, and checked as far as they can be without τ²: what a collection cannot be is
refused where it is asked for. An episode keeps its identity and its seed through every attempt.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import rollout_service.config.arguments as arguments
from rollout_service.config.sampling import Sampling
from rollout_service.config.selection import read_domain, read_ids
from rollout_service.errors import Fault, TaskError
from rollout_service.record.trajectory import Outcome, TaskRef, Trajectory
from rollout_service.redaction import shown

MOST_EPISODES = 1_000_000
"""Of one collection: the coordinator keeps a request for each."""


@dataclass(frozen=True, slots=True)
class CollectionRequest:
    """A request for episodes. A field that is None takes the service's own setting.

    Raises:
        TaskError: a field of the wrong type or outside its range, or `n` is no multiple of the group size.
    """

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
    max_attempts: int | None = None
    """Tries of an episode that infrastructure faults stop."""
    max_staleness: int | None = None
    """Of a trajectory when it is handed out; see `service.max_staleness`."""
    late: Literal["drop", "deliver"] | None = None
    """What becomes of a trajectory over `max_staleness`."""

    def __post_init__(self) -> None:
        read = {
            "n": _whole("n", self.n),
            "group_size": arguments.whole("group_size", self.group_size, 1, MOST_EPISODES, TaskError),
            "seed": _whole("seed", self.seed),
            "groups_per_update": _whole("groups_per_update", self.groups_per_update, 1),
            "max_attempts": _whole("max_attempts", self.max_attempts, 1),
            "max_staleness": _whole("max_staleness", self.max_staleness, 0),
            "domain": None if self.domain is None else read_domain(self.domain, "domain"),
            "ids": None if self.ids is None else read_ids(self.ids, "ids"),
        }
        for name, value in read.items():
            object.__setattr__(self, name, value)
        if self.n is not None:
            check_episodes(self.n, self.group_size)
        arguments.optional(arguments.truth, "shuffle", self.shuffle, TaskError)
        arguments.optional(arguments.choice, "late", self.late, ("drop", "deliver"), TaskError)
        arguments.optional(arguments.text, "split", self.split, "train", TaskError)
        if self.sampling is not None and not isinstance(self.sampling, Sampling):
            raise TaskError(
                f"sampling is {shown(self.sampling)}.", "Give a Sampling; the client makes one of a mapping."
            )


def check_episodes(n: int, group_size: int) -> None:
    """See that `n` episodes make whole groups, and are not too many.

    Raises:
        TaskError: they do not, or are.
    """
    if n > MOST_EPISODES:
        raise TaskError(
            f"n is {shown(n)}, more episodes than one collection takes.", f"Ask for at most {MOST_EPISODES} at a time."
        )
    if n < 1 or n % group_size:
        raise TaskError(
            f"n={shown(n)} is not a positive multiple of group_size={group_size}.",
            f"Ask for {max(1, round(max(n, 0) / group_size)) * group_size}, or another group size.",
        )


def _whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int | None:
    return arguments.optional(arguments.whole, name, value, least, most, TaskError)


SELECTION = tuple(
    item.name
    for item in dataclasses.fields(CollectionRequest)
    if item.name not in ("n", "group_size", "groups_per_update")
)
"""Names of the fields that choose tasks, and how they are played."""

OF_SERVICE = ("max_attempts", "max_staleness", "late")
"""Fields that stand in the configuration's `service` section under the same name."""


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


def aborted_trajectory(request: EpisodeRequest, fault: Fault) -> Trajectory:
    """The trajectory of an episode of which nothing came back."""
    return Trajectory(
        **request.identity(), outcome=Outcome.ABORTED, termination_reason="fault", reward=None, fault=fault
    )
