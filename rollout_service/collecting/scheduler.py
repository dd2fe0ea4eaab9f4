"""Scheduler: which waiting episode starts next, and on which environment actor.

Invariant: an episode runs on at most one actor at a time, and an actor runs at most as many episodes as it has slots.
Nothing here knows Ray, time or I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from rollout_service.collecting.collection import Collection
from rollout_service.errors import Fault


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt of an episode, and the actor that runs it."""

    collection_id: str
    episode: int
    """Index of the episode in its collection, see `Collection`."""
    attempt: int
    actor: str


class Scheduler:
    """Matches waiting episodes with free slots."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._running: dict[str, set[tuple[str, int]]] = {}
        self._collections: dict[str, Collection] = {}
        self._turn: deque[str] = deque()

    def add_actor(self, actor: str, slots: int) -> None:
        """Start to use an actor's slots."""
        self._slots[actor] = slots
        self._running[actor] = set()

    def remove_actor(self, actor: str) -> bool:
        """Stop using an actor's slots. Episodes that run there still have to be reported with `finish`.

        Returns:
            False if the actor was removed before.
        """
        return self._slots.pop(actor, None) is not None

    def add(self, collection: Collection) -> None:
        """Take on a collection. Collections start episodes in turn."""
        self._collections[collection.collection_id] = collection
        self._turn.append(collection.collection_id)

    def drop(self, collection_id: str) -> None:
        """Forget a collection."""
        self._collections.pop(collection_id, None)
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
    def actors(self) -> list[str]:
        """Names of the actors in use."""
        return list(self._slots)

    def next(self) -> Assignment | None:
        """Start the next episode on the least loaded actor; None when no episode can start."""
        if not any(len(self._running[actor]) < slots for actor, slots in self._slots.items()):
            return None
        for _ in range(len(self._turn)):
            collection = self._collections[self._turn[0]]
            self._turn.rotate(-1)
            for episode in collection.offers():
                actor = self._place(collection.avoided(episode))
                if actor is not None:
                    attempt = collection.start(episode)
                    self._running[actor].add((collection.collection_id, episode))
                    return Assignment(collection.collection_id, episode, attempt, actor)
        return None

    def updated(self, version: int) -> None:
        """Note that the trainer gave new weights, of this version."""
        for collection in self._collections.values():
            collection.updated(version)

    def finish(self, assignment: Assignment, fault: Fault | None, versions: tuple[int, int] | None = None) -> bool:
        """Record the end of an assignment, see `Collection.finish`. False if its collection was dropped."""
        self._running[assignment.actor].discard((assignment.collection_id, assignment.episode))
        if assignment.actor not in self._slots and not self._running[assignment.actor]:
            del self._running[assignment.actor]
        collection = self._collections.get(assignment.collection_id)
        return collection is not None and collection.finish(assignment.episode, fault, assignment.actor, versions)

    def _place(self, avoided: set[str]) -> str | None:
        """The actor with the largest share of free slots, or None.

        An actor on which the episode failed is used only if there is no other actor. If the others are merely full, the
        episode waits.
        """
        candidates = [actor for actor in self._slots if actor not in avoided] or list(self._slots)
        free = [actor for actor in candidates if len(self._running[actor]) < self._slots[actor]]
        return min(free, key=lambda actor: len(self._running[actor]) / self._slots[actor], default=None)
