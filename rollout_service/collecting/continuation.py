"""Continuation: what a collection goes on from, when an earlier one played a part of it.

Invariant: an episode that is stored is not asked for again, and every other one is asked for once, under the identity
that it had in the earlier collection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import rollout_service.config.arguments as arguments
from rollout_service.errors import TaskError
from rollout_service.redaction import shown

if TYPE_CHECKING:
    from rollout_service.collecting.request import EpisodeRequest


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where a collection begins in its selection's sequence of tasks, and which of its episodes are stored.

    Raises:
        TaskError: a field of the wrong type or out of range.
    """

    first_draw: int = 0
    """Number of tasks of the sequence that come before the collection's first one."""
    collection_id: str | None = None
    """The collection that is continued; None: a new one."""
    done: tuple[tuple[int, int, int], ...] = ()
    """Group number, sample index and seed of each episode that is stored."""

    def __post_init__(self) -> None:
        arguments.whole("first_draw", self.first_draw, 0, error=TaskError)
        arguments.optional(arguments.text, "collection_id", self.collection_id, "3f9c1a7be02d", TaskError)
        object.__setattr__(self, "done", tuple(_stored(episode) for episode in self.done))


def _stored(given: Any) -> tuple[int, int, int]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence) or len(given) != 3:
        raise TaskError(f"done has {shown(given)}.", "Give group number, sample index and seed of each episode.")
    group, sample, seed = (
        arguments.whole(f"{name} in done", value, least, error=TaskError)
        for name, value, least in zip(("group", "sample", "seed"), given, (0, 0, None), strict=True)
    )
    return group, sample, seed


def left_to_play(
    requests: Sequence[EpisodeRequest], group_size: int, done: Iterable[tuple[int, int, int]]
) -> tuple[list[EpisodeRequest], list[int]]:
    """The groups that still lack episodes, those that are stored in part first.

    Args:
        requests: of the whole collection, group by group in groups of `group_size`.
        done: as in `Continuation`.

    Returns:
        The requests of these groups, and the positions among them of the episodes that are stored.

    Raises:
        TaskError: a stored episode is not one of the collection's.
    """
    stored = {}
    for group, sample, seed in done:
        place = group * group_size + sample
        if sample >= group_size or place >= len(requests) or requests[place].seed != seed:
            raise TaskError(
                f"Episode {sample} of group {group} with seed {seed} is stored, but is none of this collection's.",
                "Continue with the settings, and the release of τ²-bench, that the stored episodes were played with.",
            )
        stored[place] = seed
    counts = Counter(place // group_size for place in stored)
    groups = [group for group in range(len(requests) // group_size) if counts[group] < group_size]
    groups.sort(key=lambda group: counts[group] == 0)
    places = [place for group in groups for place in range(group * group_size, (group + 1) * group_size)]
    return [requests[place] for place in places], [at for at, place in enumerate(places) if place in stored]
