"""Filtering: carries out what a collection's filter decides.

Invariant: a group that is dropped or let go of takes no memory here and no place in the journal. No trajectory is
looked at: the rewards in the summaries decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rollout_service.collecting.collection import ENDLESS, Collection
from rollout_service.collecting.filtered import FilteredCollection
from rollout_service.collecting.refill import Keep, is_informative
from rollout_service.errors import ServiceError, TooFewKept
from rollout_service.journal.entries import Dropped

if TYPE_CHECKING:  # it imports this module
    from actors.running import RunningCollection


def judge(running: RunningCollection, group: int) -> bool:
    """Drop a finished group that is no data, or whose rewards do not differ, where a filter does not want it. Returns
    False if it is dropped."""
    it = running.collection
    if not isinstance(it, FilteredCollection):
        return True
    rewards = (running.rewards.get(episode) for episode in running.played(group))
    if it.withheld(group) or (it.keeps == "informative" and not is_informative(rewards)):
        drop(running, (group,))
    elif it.keeps == "informative":
        it.dropped_in_a_row = 0
    return not it.is_gone(group)


def drop(running: RunningCollection, groups: Sequence[int]) -> None:
    """Drop these finished groups. Others take their places.

    Raises:
        ServiceError: the collection keeps every group.
    """
    it = running.collection
    if not isinstance(it, FilteredCollection):
        raise ServiceError(f"Collection {running.name} keeps every group.", "Ask for it with keep.")
    for group in groups:
        if it.drop(group):
            running.journal.record(Dropped(running.name, group))
            running.forget(group)
    running.changed.set()


def let_go(collections: Iterable[RunningCollection], cancel: Callable[[list[str]], object]) -> None:
    """Let go of the groups that are not wanted any more.

    Args:
        cancel: called with the ids of their episodes, some of which may run.
    """
    episodes = []
    for running in collections:
        it = running.collection
        for group in it.let_go() if isinstance(it, FilteredCollection) else ():
            running.forget(group)
            running.changed.set()
            episodes += [running.requests[episode].trajectory_id for episode in running.played(group)]
    if episodes:
        cancel(episodes)


def judged(running: RunningCollection, again: bool) -> None:
    """As `FilteredCollection.judged`."""
    if isinstance(running.collection, FilteredCollection):
        running.collection.judged(again)


def wanted(collection: Collection) -> int:
    """Number of groups that are to be handed out."""
    return collection.wanted if isinstance(collection, FilteredCollection) else collection.unstarted.groups


def keeps(running: RunningCollection) -> Keep | None:
    """Who decides which groups are kept; None: all are."""
    return running.collection.keeps if isinstance(running.collection, FilteredCollection) else None


def dropped(running: RunningCollection) -> int:
    """Number of groups that were dropped."""
    return running.collection.dropped if isinstance(running.collection, FilteredCollection) else 0


def is_gone(running: RunningCollection, group: int) -> bool:
    """Whether the group was dropped, or let go of because enough others were kept."""
    return isinstance(running.collection, FilteredCollection) and running.collection.is_gone(group)


def counts(running: RunningCollection) -> dict[str, int | None] | None:
    """Numbers of groups, for the status; None: every group is kept."""
    it = running.collection
    if not isinstance(it, FilteredCollection):
        return None
    return {
        "begun": it.begun,
        "kept": it.kept,
        "dropped": it.dropped,
        "dropped_in_a_row": it.dropped_in_a_row,
        "undecided": it.undecided,
        "let_go": it.surplus,
        "most": None if it.unstarted.groups == ENDLESS else it.unstarted.groups,
    }


def is_enough(running: RunningCollection) -> bool:
    """Whether the reader has all groups that it asked for, though others may not have begun."""
    return isinstance(running.collection, FilteredCollection) and running.collection.is_enough


def too_few(running: RunningCollection) -> TooFewKept | None:
    """Why a collection that is exhausted has fewer groups than were asked for; None: it has not, or has no filter."""
    it = running.collection
    if not isinstance(it, FilteredCollection) or it.is_enough:
        return None
    kept = "no group" if not it.kept else f"{it.kept} group{'' if it.kept == 1 else 's'}"
    return TooFewKept(
        f"keep kept {kept} of the {it.wanted} that were asked for, and dropped {it.dropped}: most_groups="
        f"{it.unstarted.groups} have begun.",
        "What was kept was delivered. Raise most_groups, or choose tasks that the policy solves sometimes.",
    )
