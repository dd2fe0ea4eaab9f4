"""Messages between the policy's replicas and the fleet.

Invariant: messages only. Both sides can be asked again at any time, so each message states all that holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from rollout_service.policy.weight_history import Names, WeightHistory
from rollout_service.policy.weights import UpdateMode, WeightUpdate


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """What an engine and its episodes' turns tell of its prefix cache. Sums are since the replica started."""

    capacity: int
    """Tokens whose keys and values the memory holds."""
    inside: int
    """Turns that the engine has now, whether they wait, or their prompts are computed, or they are sampled."""
    sampling: int
    """Those of them that are sampled."""
    later_turns: int
    """Sum: turns of episodes whose prefix the cache should have, because the turn before was sampled here."""
    recomputed_tokens: int
    """Sum: tokens of their prefixes that were not found, because they had been evicted."""
    recompute_seconds: float
    """Sum: seconds in which the engine computed those again."""
    latest_turns: int
    """Number of turns that the means are of."""
    context_tokens: float
    """Mean of prompt and answer together, over the latest turns."""
    shared_tokens: float
    """Mean of what the latest episodes' first turns found in the cache: what they share with others."""
    fixed_share: float = 1.0
    """Share of the time of a decoding step that does not depend on the number of turns in it, 0 to 1; 1 also where that
    is not known."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How full an engine is."""

    waiting: int
    """Turns that wait in its queue."""
    kv_use: float
    """Share of the room for keys and values that running turns use, 0 to 1. The prefix cache may use the rest."""
    cache_hits: float
    """Share of the latest prompt tokens that were found in the prefix cache, 0 to 1."""
    cache: CacheFigures | None = None
    """None: the engine does not say how many tokens its memory holds."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """State of one replica, as it reports it."""

    replica: str
    version: int
    """Version of the weights that it samples with."""
    paused: bool
    running: int
    """Turns being sampled."""
    pauses: int
    """Number of the last pause or resume order, see `DesiredState`."""
    serves: str = ""
    """Name of the model in the replica's settings, or `scripted`. Empty: the replica does not say."""
    occupancy: Occupancy | None = None
    """None: the engine has no cache and no queue, or the replica does not say."""
    stopped_seconds: float = 0.0
    """For how long no turn ran in its last weight update, counted from when the last one had stopped."""
    lost_group: tuple[str, str] | None = None
    """Name of the last process group that it could not join, or can no longer use because an update through it failed,
    and why."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A replica's answer that it can load new weights."""

    state: ReplicaState
    names: Names
    """The parameters that the new weights contain."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The state that every replica should have, including those that start later."""

    update: WeightUpdate | None = None
    """The newest weights that can be loaded again: over the model's own weights, everything that was changed."""
    pause: UpdateMode | None = None
    """How turns were stopped, while the replicas are paused. None: they sample."""
    pauses: int = 0
    """How often the replicas were paused or resumed. Of two orders, the one with the larger number is the newer."""

    @classmethod
    def of(cls, states: Iterable[ReplicaState]) -> Self:
        """What replicas were ordered last, whose fleet is gone. How they stopped their turns, they do not say; one that
        starts has none to stop."""
        last = max(states, key=lambda state: state.pauses, default=None)
        return cls() if last is None else cls(pause="drain" if last.paused else None, pauses=last.pauses)


@dataclass(frozen=True, slots=True)
class FleetState:
    """All that the fleet must know to go on after its death, apart from process groups, which end with it.

    Fleet and coordinator both have it. Whichever is started again gets it from the other."""

    version: int
    """Version of the weights that the trainer gave last."""
    desired: DesiredState = DesiredState()
    history: WeightHistory = field(default_factory=WeightHistory)
    replica_variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment variables with secrets that replicas need. Empty without a journal: no actor is started again."""
    episode_variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Those that episodes need, likewise."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """The result of a weight update."""

    version: int
    replicas: list[ReplicaState]
    """The replicas that serve the new weights."""
    lost: list[str]
    """The errors of the other replicas. Those that died are being replaced. All of them try again to load the newest
    weights that can be loaded again; until then they sample with the weights that they have, under their version."""
