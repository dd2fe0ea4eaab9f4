"""Scheduler: which waiting episode starts next, and on which environment actor.

Invariant: an episode runs on at most one actor at a time, and an actor runs at most as many episodes as it has slots.
Collections that have episodes to start share the slots' time by their weights, and none of them waits for ever. Nothing
here knows Ray or I/O, and the time is handed in.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.filtered import FilteredCollection
from rollout_service.collecting.share import Share
from rollout_service.errors import Fault


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt of an episode, and the actor that runs it."""

    collection: Collection
    episode: int
    """Index of the episode in its collection, see `Collection`."""
    attempt: int
    actor: str

    @property
    def collection_id(self) -> str:
        """Id of the collection. One that is continued has the id of the one before, whose episodes may still end."""
        return self.collection.collection_id

    @property
    def is_let_go(self) -> bool:
        """Whether the collection has enough groups without the episode's."""
        it = self.collection
        return isinstance(it, FilteredCollection) and it.is_gone(self.episode // it.group_size)


class Scheduler:
    """Matches waiting episodes with free slots."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._running: dict[str, set[tuple[Collection, int]]] = {}
        self._collections: dict[str, Collection] = {}
        self._shares: dict[str, Share] = {}
        self._turn: deque[str] = deque()
        """The collections, in the order in which equals take turns."""
        self._served = 0.0
        """Use, by weight, of the collection that started an episode last: what any of them has had by now."""
        self.limit: int | None = None
        """Episodes that may run, whatever the number of slots; None: as many as there are slots."""

    def add_actor(self, actor: str, slots: int) -> None:
        """Start to use an actor's slots."""
        self._slots[actor] = slots
        self._running[actor] = set()

    def remove_actor(self, actor: str) -> None:
        """Stop using an actor's slots. Episodes that run there still have to be reported with `finish`."""
        self._slots.pop(actor, None)
        if not self.running_on(actor):
            self._running.pop(actor, None)

    def add(self, collection: Collection, now: float = 0.0) -> None:
        """Take on a collection, or one that was parked once more. A new one begins with as much use as the one that had
        the least of those that run."""
        name = collection.collection_id
        if self._collections.get(name) is not collection:
            had = (share.used(now) for share in self._shares.values() if share.is_running)
            self._collections[name] = collection
            self._shares[name] = Share(collection.weight, min(had, default=0.0))
        if name not in self._turn:
            self._turn.append(name)

    def drop(self, collection_id: str) -> None:
        """Forget a collection."""
        self.park(collection_id)
        self._shares.pop(collection_id, None)
        self._collections.pop(collection_id, None)

    def park(self, collection_id: str) -> None:
        """Start nothing more of a collection until it is added again. The ends of episodes that run are recorded."""
        if collection_id in self._turn:
            self._turn.remove(collection_id)

    @property
    def running(self) -> int:
        """Number of episodes that run now."""
        return sum(len(episodes) for episodes in self._running.values())

    @property
    def slots(self) -> int:
        """Number of slots of all actors."""
        return sum(self._slots.values())

    @property
    def is_held(self) -> bool:
        """Whether no episode starts although a slot is free, because as many run as may."""
        return self.limit is not None and self.limit <= self.running < self.slots

    @property
    def actors(self) -> list[str]:
        """Names of the actors in use."""
        return list(self._slots)

    def running_on(self, actor: str) -> int:
        """Number of episodes that run on the actor, also on one that was removed."""
        return len(self._running.get(actor, ()))

    @property
    def demand(self) -> int:
        """Number of episodes that run or could run now, if there were slots enough."""
        wanted = self.running + sum(self._collections[name].startable for name in self._turn)
        return wanted if self.limit is None else max(self.running, min(wanted, self.limit))

    def wakes_at(self, now: float) -> float:
        """When `next` may find an episode by the passing of time alone; infinity: never."""
        return min((self._collections[name].wakes_at(now) for name in self._turn), default=math.inf)

    def next(self, now: float = math.inf) -> Assignment | None:
        """Start the next episode on the least loaded actor; None when no episode can start.

        Args:
            now: the time; by default every pause is over.
        """
        if self.is_held or not any(len(self._running[actor]) < slots for actor, slots in self._slots.items()):
            return None
        for collection_id in sorted(self._turn, key=lambda name: self._shares[name].rank(self._served, now)):
            collection, share = self._collections[collection_id], self._shares[collection_id]
            for episode in collection.offers(now):
                actor = self._place(collection, episode)
                if actor is not None:
                    self._turn.remove(collection_id)
                    self._turn.append(collection_id)
                    self._served = share.start(self._served, now)
                    self._running[actor].add((collection, episode))
                    return Assignment(collection, episode, collection.start(episode, now), actor)
        return None

    def updated(self, version: int) -> dict[str, int]:
        """Note that the trainer gave new weights, of this version.

        Returns:
            By id of each collection that drops what is too old: the oldest version with which an episode of it can
            still be in time. Episodes in flight that sampled with an older one are to be cut.
        """
        for collection in self._collections.values():
            collection.updated(version)
        least = {name: each.staleness.min_version(version) for name, each in self._collections.items()}
        return {name: oldest for name, oldest in least.items() if oldest is not None}

    def finish(
        self,
        assignment: Assignment,
        fault: Fault | None,
        versions: tuple[int, int] | None = None,
        now: float = 0.0,
        *,
        was_answered: bool = False,
        scored: bool = True,
    ) -> bool:
        """Record the end of an assignment, see `Collection.finish`. False if its collection was dropped."""
        collection = self._release(assignment, now)
        end = assignment.episode, fault, assignment.actor, versions, now
        return collection is not None and collection.finish(*end, was_answered=was_answered, scored=scored)

    def lose(self, assignment: Assignment, now: float = 0.0) -> bool:
        """Record that an assignment was lost with its actor, see `Collection.lose`."""
        collection = self._release(assignment, now)
        return collection is not None and collection.lose(assignment.episode, now)

    def hand_back(self, assignment: Assignment, now: float = 0.0) -> bool:
        """Record that an assignment was broken off because its actor goes away, see `Collection.hand_back`."""
        collection = self._release(assignment, now)
        return collection is not None and collection.hand_back(assignment.episode)

    def cut(self, assignment: Assignment, now: float = 0.0) -> bool:
        """Record that an assignment was ended in flight because it was too old, see `Collection.cut`."""
        collection = self._release(assignment, now)
        return collection is not None and collection.cut(assignment.episode)

    def _release(self, assignment: Assignment, now: float) -> Collection | None:
        """Free the assignment's slot. Returns its collection; None: it was dropped, or let the episode's group go."""
        self._running[assignment.actor].discard((assignment.collection, assignment.episode))
        if assignment.actor not in self._slots and not self._running[assignment.actor]:
            del self._running[assignment.actor]
        if self._collections.get(assignment.collection_id) is not assignment.collection:
            return None
        self._shares[assignment.collection_id].end(now)
        return None if assignment.is_let_go else assignment.collection

    def _place(self, collection: Collection, episode: int) -> str | None:
        """The actor with the largest share of free slots, or None.

        An actor on which the episode failed is used only if there is no other actor. If the others are merely full, the
        episode waits. Episodes that may be what kills their actors are kept apart, so that an innocent one among them
        comes through.
        """
        avoided = collection.state(episode).failed_on
        candidates = [actor for actor in self._slots if actor not in avoided] or list(self._slots)
        if collection.state(episode).is_suspect:
            candidates = [actor for actor in candidates if not self._has_suspect(actor)]
        free = [actor for actor in candidates if len(self._running[actor]) < self._slots[actor]]
        return min(free, key=lambda actor: len(self._running[actor]) / self._slots[actor], default=None)

    def _has_suspect(self, actor: str) -> bool:
        return any(collection.state(episode).is_suspect for collection, episode in self._running[actor])
