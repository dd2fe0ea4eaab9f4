"""Entries: what happens to collections and their episodes, as the journal records it.

Invariant: applying an entry twice is the same as applying it once. An episode goes one way: asked, stored, delivered,
acknowledged. Asked are the episodes of a collection's plan, and those that were drawn later; stored are those whose
result is safe.
"""

from __future__ import annotations

from dataclasses import dataclass

from rollout_service.collecting.drawing import SamplerPosition
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest
from rollout_service.collecting.spending import Spending
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.record.part import Part


@dataclass(frozen=True, slots=True)
class Asked:
    """A client asked for a collection, and this is its plan, as far as it is known then."""

    collection_id: str
    client: str
    """Id of the client, whose lease keeps the collection alive."""
    request: CollectionRequest
    episodes: list[EpisodeRequest]
    before: tuple[int, ...]
    """The episodes that were done before it, see `Collection.skip`."""
    first_draw: int
    sampler: SamplerPosition | None
    """How far the selection was drawn with this plan; None: the request has a seed of its own."""
    submission: str | None = None
    """Id of the call that asked for it: the same call made again gets this collection. None: it is not made again."""
    groups: int | None = None
    """Number of groups that the reader has to acknowledge; None: those of the plan."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A group of a collection whose plan does not have it was drawn."""

    collection_id: str
    group: int
    """Number of the group in its collection: one more than that of the group before."""
    episodes: list[EpisodeRequest]
    sampler: SamplerPosition | None
    """As in `Asked`, with this group."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """Another client reads the collection from now on."""

    collection_id: str
    client: str
    """Id of the client, whose lease keeps the collection alive."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An episode has its result, which replaces an earlier one that became too old."""

    collection_id: str
    episode: int
    """Index of the episode in its collection, see `Collection`."""
    attempt: int
    summary: EpisodeSummary
    """It names the trajectory's part. Without one the trajectory is an aborted one, made of request and fault."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A group is handed out: its reader gets it now, or when it asks for it."""

    collection_id: str
    group: int
    """Number of the group in its collection, which is the delivery's number as well."""
    expired: tuple[int, ...] = ()
    """Episodes of it that were too old, see `Handout`."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The reader has these groups for good."""

    collection_id: str
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A filter dropped a finished group, whether it was delivered or not. Nobody needs its episodes."""

    collection_id: str
    group: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Nobody waits for the collection any more."""

    collection_id: str


@dataclass(frozen=True, slots=True)
class Discarded:
    """Nobody needs this part: it is of an attempt that is not its episode's result."""

    part: Part


SERVICE = ""
"""Stands for the service in `Spent`, in the place of a collection's id."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a collection with a budget has spent, or the service with all its collections."""

    collection_id: str
    spending: Spending
    """A copy, because it grows."""
    seconds: float
    """Time since it began."""


@dataclass(frozen=True, slots=True)
class Positioned:
    """A sampler has drawn so far, and has learned something or was changed."""

    sampler: SamplerPosition
    replaces: bool = False
    """Whether what it had learned before is forgotten. Otherwise what it learned now is merged into it."""


@dataclass(frozen=True, slots=True)
class Served:
    """The trainer has given weights of this version."""

    version: int


Entry = (
    Asked
    | Drawn
    | Reopened
    | Stored
    | Delivered
    | Acknowledged
    | Dropped
    | Ended
    | Discarded
    | Spent
    | Positioned
    | Served
)
