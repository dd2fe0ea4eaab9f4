"""Drawing: the groups of one collection that were drawn, and where further ones come from.

Invariant: a group is drawn once, at the latest when it begins, and keeps its task and the seeds of its episodes. Groups
are drawn in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout_service.collecting.request import EpisodeRequest
from rollout_service.record.trajectory import TaskRef


@dataclass(frozen=True, slots=True)
class SamplerPosition:
    """How far a sampler has drawn."""

    selection: str
    """What it draws from: the selection of the collections that have no seed of their own, or one collection that has
    one, see `own`."""
    seed: int
    drawn: int
    learned: dict[str, Any] | None = None
    """What is to be merged into what is known of its state, see `TaskSampler.observe`; None: nothing."""


def own(collection_id: str) -> str:
    """Stands in a `SamplerPosition` for the selection of a collection whose sampler is its own."""
    return f"collection {collection_id}"


class Source(Protocol):
    """Where the further groups of a collection come from."""

    def draw(self, group: int) -> list[EpisodeRequest]:
        """The episodes of the next group, which has this number in its collection. Never blocks."""

    def observe(self, task: TaskRef, rewards: Sequence[float | None]) -> SamplerPosition | None:
        """Learn what the episodes of a finished group came to. None in `rewards`: a fault ended the episode.

        Returns:
            The position with what was learned; None: nothing was.
        """

    @property
    def position(self) -> SamplerPosition | None:
        """How far the sampler has drawn; None: that follows from the number of groups."""

    def facts(self) -> dict[str, Any]:
        """What a status says of the sampler."""


class Drawing:
    """The episodes of one collection, as far as they were drawn. Their index is as in `Collection`."""

    def __init__(self, group_size: int, drawn: Sequence[EpisodeRequest] = (), source: Source | None = None) -> None:
        """
        Args:
            drawn: the episodes of the groups that were drawn before, such as all of them.
            source: gives further groups; None: there are none.
        """
        self.requests = list(drawn)
        self._group_size = group_size
        self._source = source

    def reach(self, episode: int) -> list[tuple[int, list[EpisodeRequest]]]:
        """Draw until this episode is among the requests. Returns the groups that it took, each with its number."""
        drawn = []
        while len(self.requests) <= episode:
            assert self._source is not None, f"episode {episode} is beyond the plan of {len(self.requests)}"
            group = len(self.requests) // self._group_size
            members = self._source.draw(group)
            self.requests += members
            drawn.append((group, members))
        return drawn

    @property
    def position(self) -> SamplerPosition | None:
        """As in `Source`."""
        return None if self._source is None else self._source.position

    def observe(self, group: int, rewards: Sequence[float | None]) -> SamplerPosition | None:
        """Take what the episodes of a finished group came to, as in `Source`."""
        if self._source is None:
            return None
        return self._source.observe(self.requests[group * self._group_size].task, rewards)

    def facts(self) -> dict[str, Any] | None:
        """What a status says of the sampler; None: nothing more is drawn."""
        return None if self._source is None else self._source.facts()
