"""Requests to the service: a collection, and each of its episodes.

Invariant: a request holds plain values that are cheap to send. All that can be checked without τ² is checked in the
caller's process. An episode keeps its identity and its seed through every attempt.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import rollout_service.config.arguments as arguments
from rollout_service.collecting.continuation import Continuation
from rollout_service.collecting.partial import MinGroupSize, check_fits
from rollout_service.collecting.refill import Keep
from rollout_service.config.budget import Budget
from rollout_service.config.sampling import Sampling
from rollout_service.config.selection import read_domain, read_ids
from rollout_service.config.tasks import SamplerKind
from rollout_service.errors import Fault, TaskError
from rollout_service.record.trajectory import Outcome, TaskRef, Trajectory
from rollout_service.redaction import shown
from rollout_service.termination import TerminationReason

MOST_EPISODES = 1_000_000
"""Most episodes of one collection. The coordinator keeps a request for each."""

WEIGHTS = (0.001, 1000.0)
"""Least and largest weight of a collection."""


@dataclass(frozen=True, slots=True)
class CollectionRequest:
    """A request for episodes. A field that is None takes the service's own setting.

    Raises:
        TaskError: a field of the wrong type or outside its range, or `n` is no multiple of the group size.
    """

    n: int | None = None
    """Episodes; None: every task of the selection once, times the group size, unless it is endless."""
    group_size: int = 1
    endless: bool = False
    """Whether it draws tasks and begins groups until it is ended."""
    domain: str | dict[str, float] | None = None
    split: str | None = None
    ids: list[str] | None = None
    shuffle: bool | None = None
    sampler: SamplerKind | None = None
    """How the next task is drawn, see `tasks.sampler`."""
    seed: int | None = None
    """A number determines tasks and episodes. None: go on where the last collection of the same selection stopped."""
    groups_per_update: int | None = None
    """Number of groups that the trainer takes between two weight updates. With it, `service.max_staleness` holds back
    groups that would be too old when they are taken. None: they are found too old when they are taken."""
    keep: Keep | None = None
    """Which groups are kept; the others are replaced by groups of further tasks, and `n` counts those that are kept.
    `informative`: those whose rewards differ. `reader`: those that the reader does not drop. None: all, and none is
    replaced."""
    most_groups: int | None = None
    """Most groups that begin, with `keep`. None: 10 for each one that is to be kept; an endless one has no limit."""
    sampling: Sampling | None = None
    """How the policy samples for these episodes; None: as the service is configured."""
    max_turns: int | None = None
    """Most policy turns of an episode; None: `limits.max_turns` of the service."""
    max_attempts: int | None = None
    """Attempts at an episode that infrastructure faults stop."""
    max_staleness: int | None = None
    """Largest staleness of a trajectory when it is handed out; see `service.max_staleness`."""
    late: Literal["drop", "deliver"] | None = None
    """What happens to a trajectory over `max_staleness`."""
    min_group_size: MinGroupSize | None = None
    """Fewest scored trajectories of a group that is data; see `service.min_group_size`."""
    weight: float | None = None
    """Share of the slots, relative to the weights of the other collections; None: 1."""
    continues: Continuation | None = None
    """What it goes on from. None: it is a collection of its own."""
    budget: Budget | None = None
    """How much it may spend; None: no limit but the service's."""

    def __post_init__(self) -> None:
        read = {
            "n": _whole("n", self.n),
            "group_size": arguments.whole("group_size", self.group_size, 1, MOST_EPISODES, TaskError),
            "seed": _whole("seed", self.seed),
            "groups_per_update": _whole("groups_per_update", self.groups_per_update, 1),
            "most_groups": _whole("most_groups", self.most_groups, 1, MOST_EPISODES),
            "max_turns": _whole("max_turns", self.max_turns, 1),
            "max_attempts": _whole("max_attempts", self.max_attempts, 1),
            "max_staleness": _whole("max_staleness", self.max_staleness, 0),
            "min_group_size": self.min_group_size
            if self.min_group_size == "any"
            else _whole("min_group_size", self.min_group_size, 1),
            "weight": arguments.optional(arguments.number, "weight", self.weight, *WEIGHTS, TaskError),
            "domain": None if self.domain is None else read_domain(self.domain, "domain"),
            "ids": None if self.ids is None else read_ids(self.ids, "ids"),
        }
        for name, value in read.items():
            object.__setattr__(self, name, value)
        if self.n is not None:
            check_episodes(self.n, self.group_size)
        arguments.truth("endless", self.endless, TaskError)
        check_fits(self.min_group_size, self.group_size)
        arguments.optional(arguments.truth, "shuffle", self.shuffle, TaskError)
        arguments.optional(arguments.choice, "late", self.late, ("drop", "deliver"), TaskError)
        arguments.optional(arguments.choice, "sampler", self.sampler, get_args(SamplerKind), TaskError)
        arguments.optional(arguments.text, "split", self.split, "train", TaskError)
        if self.continues is not None and not isinstance(self.continues, Continuation):
            raise TaskError(f"continues is {shown(self.continues)}.", "Give a Continuation, or leave it out.")
        self._check_filter()
        if self.endless and (self.n is not None or self.continues is not None):
            other = "continues" if self.n is None else "n"
            raise TaskError(f"endless is True, and {other} is {shown(getattr(self, other))}.", "Leave out one of them.")
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise TaskError(f"budget is {shown(self.budget)}.", "Give a Budget; the client makes one of a mapping.")
        if self.sampling is not None and not isinstance(self.sampling, Sampling):
            raise TaskError(
                f"sampling is {shown(self.sampling)}.", "Give a Sampling; the client makes one of a mapping."
            )

    def _check_filter(self) -> None:
        """Check that the groups that are kept can be counted, and that some may be dropped."""
        arguments.optional(arguments.choice, "keep", self.keep, get_args(Keep), TaskError)
        if self.keep is None:
            if self.most_groups is not None:
                text = f"most_groups is {self.most_groups}, but no group is replaced without keep."
                raise TaskError(text, "Give keep as well, or leave it out.")
            return
        if self.n is None and not self.endless:
            text = f"keep is {shown(self.keep)}, but n is None: every task once leaves none to replace what is dropped."
            raise TaskError(text, "Give n, or endless=True.")
        if self.keep == "informative" and self.group_size == 1:
            text = "keep is 'informative', but group_size is 1: a single reward differs from no other."
            raise TaskError(text, "Give a group_size of at least 2, or a function.")
        if self.continues is not None:
            text = "keep is given with continues: nobody can say which tasks took the place of dropped ones."
            raise TaskError(text, "Leave out one of them.")
        if self.n is not None and self.most_groups is not None and self.most_groups * self.group_size < self.n:
            text = (
                f"most_groups is {self.most_groups}, fewer than the {self.n // self.group_size} groups of n={self.n}."
            )
            raise TaskError(text, "Raise most_groups, or ask for fewer episodes.")


def check_episodes(n: int, group_size: int) -> None:
    """Check that `n` episodes make whole groups and are not too many.

    Raises:
        TaskError: they do not, or are too many.
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
"""Names of the fields that choose the tasks and how their episodes run."""


OF_SAMPLER = ("domain", "split", "ids", "shuffle", "sampler")
"""Fields that name the sampler from which a collection without a seed draws."""


class Accepted(NamedTuple):
    """The service's answer to a request that it accepts."""

    collection_id: str
    episodes: int | None
    """Number of episodes that will be played; None: it is endless."""
    first_draw: int
    """Number of tasks of the selection's sequence that come before the collection's first one."""
    keep: Keep | None = None
    """Who decides which groups are kept; None: all are."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values. Clients of older releases know no keep."""
        values = self._asdict()
        return values if self.keep is not None else {name: values[name] for name in values if name != "keep"}


OF_SERVICE = ("max_attempts", "max_staleness", "late", "min_group_size")
"""Fields that stand in the configuration's `service` section under the same name."""


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """All that an environment actor needs to know about an episode."""

    trajectory_id: str
    collection_id: str
    group_id: str
    sample_index: int
    task: TaskRef
    seed: int
    attempt: int = 1
    waited_seconds: float = 0.0
    """Time from the collection's request until the episode starts; before that, until now. It is a duration because
    the clocks of machines differ and jump."""
    min_version: int = 0
    """Oldest weight version that may sample for it. With an older one the trajectory would be too old when done."""
    sampling: Sampling | None = None
    """How its turns are sampled; None: as the service is configured."""
    max_turns: int | None = None
    """Most policy turns; None: as the service is configured."""

    def identity(self) -> dict[str, Any]:
        """The fields that its trajectory takes over unchanged."""
        own = ("waited_seconds", "min_version", "sampling", "max_turns")
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in own}


def aborted_trajectory(request: EpisodeRequest, fault: Fault) -> Trajectory:
    """The trajectory of an episode that returned nothing."""
    return Trajectory(
        **request.identity(),
        outcome=Outcome.ABORTED,
        termination_reason=str(TerminationReason.FAULT),
        reward=None,
        fault=fault,
    )
