"""What runs next, where, and what becomes of it: the coordinator's decisions as pure state machines.

Invariant: every episode of a collection is either waiting, running on exactly one actor, or done; it is done exactly
once, as delivered or as failed; and a group is handed out exactly once, when all its episodes are done and none is too
old to be. Nothing here knows Ray, time or I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from rollout_service.errors import Fault
from rollout_service.record.trajectory import Outcome, Trajectory


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """What the coordinator reads of an episode; the trajectory itself it only passes on."""

    trajectory_id: str
    outcome: Outcome
    termination_reason: str
    reward: float | None
    fault: Fault | None
    versions: tuple[int, int] | None = None
    """Oldest weight version, that sampled a token or whose keys and values one was computed over, and the newest that
    sampled one."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt tokens, those that the engine took from its prefix cache."""

    @classmethod
    def of(cls, trajectory: Trajectory) -> EpisodeSummary:
        """The trajectory's summary."""
        return cls(
            trajectory.trajectory_id,
            trajectory.outcome,
            trajectory.termination_reason,
            trajectory.reward,
            trajectory.fault,
            _versions(trajectory),
            trajectory.prompt_token_count,
            trajectory.cached_token_count,
        )


def _versions(trajectory: Trajectory) -> tuple[int, int] | None:
    oldest, sampled = trajectory.oldest_version, trajectory.weight_version_range
    return None if oldest is None or sampled is None else (oldest, sampled[1])


@dataclass(frozen=True, slots=True)
class Assignment:
    """Run this episode there, now."""

    collection_id: str
    episode: int
    """Index of the episode in its collection: group × group size + sample."""
    attempt: int
    actor: str


@dataclass(slots=True)
class _Episode:
    attempts: int = 0
    failed_on: set[str] = field(default_factory=set)
    done: bool = False
    oldest_version: int | None = None


@dataclass(frozen=True, slots=True)
class Staleness:
    """How old a trajectory may be when it is handed out, and what happens to those that are older."""

    maximum: int | None = None
    """Weight version then minus the oldest version in the trajectory; None: any."""
    drop: bool = True
    """Older ones are made again; else they are handed out and counted."""
    groups_per_update: int | None = None
    """Groups that the trainer takes between two weight updates; None: as many as there are."""

    def late(self, oldest: int | None, version: int) -> bool:
        """Whether a trajectory whose oldest version is `oldest` is too old at `version`."""
        return self.maximum is not None and oldest is not None and version - oldest > self.maximum

    def in_time(self, position: int) -> bool:
        """Whether a group that starts now can be handed out in time, `position` groups going to the trainer between the
        last update and it: it will be handed out after position // groups_per_update more updates."""
        if self.maximum is None or self.groups_per_update is None:
            return True
        return position // self.groups_per_update <= self.maximum


@dataclass(frozen=True, slots=True)
class Handout:
    """A group that is done, to be handed out now."""

    group: int
    expired: tuple[int, ...] = ()
    """Its episodes that are too old still after all attempts: they count as failed."""


class Collection:
    """One request for groups of episodes: what of it waits, runs and is done."""

    def __init__(
        self,
        collection_id: str,
        groups: int,
        group_size: int,
        *,
        max_attempts: int = 3,
        max_buffered_groups: int = 64,
        staleness: Staleness = Staleness(),
        version: int = 0,
    ) -> None:
        self.collection_id = collection_id
        self.group_size = group_size
        self.groups = groups
        self.max_attempts = max_attempts
        self.staleness = staleness
        self.retries = 0
        self.failed = 0
        self.late = 0
        """Trajectories that were too old, dropped and delivered alike."""
        self._version = version
        self._taken = 0
        """Groups handed out since the last weight update."""
        self._max_buffered = max_buffered_groups
        self._episodes = [_Episode() for _ in range(groups * group_size)]
        self._open = [group_size] * groups
        self._next_new = 0
        self._again: deque[int] = deque()
        self._ready: deque[int] = deque()
        self._handed_out = 0
        self._cancelled = False

    @property
    def delivered(self) -> int:
        """Episodes done, the failed ones included."""
        return sum(self.group_size - left for left in self._open)

    @property
    def waiting(self) -> int:
        """Episodes that could start now or later."""
        return 0 if self._cancelled else len(self._episodes) - self._next_new + len(self._again)

    @property
    def exhausted(self) -> bool:
        """True when every group was handed out, or none more will be."""
        return self._handed_out == self.groups or (self._cancelled and not self._ready)

    def is_done(self, episode: int) -> bool:
        """Whether the episode ended, and is not made again."""
        return self._episodes[episode].done

    @property
    def held_back(self) -> Literal["buffer", "staleness"] | None:
        """Why no new group may start: too many finished ones wait to be taken, or it would be too old by the time that
        it is handed out. None: one may, or there is none."""
        if self._cancelled or self._next_new == len(self._episodes) or self._next_new % self.group_size:
            return None
        if len(self._ready) >= self._max_buffered:
            return "buffer"
        ahead = self._next_new // self.group_size - self._handed_out
        return None if self.staleness.in_time(self._taken + ahead) else "staleness"

    def offers(self) -> list[int]:
        """Episodes that may start next, the preferred first: a repeated one, then the next of the open or a new group.

        No new group while one is `held_back`.
        """
        if self._cancelled:
            return []
        offers = [self._again[0]] if self._again else []
        if self._next_new < len(self._episodes) and self.held_back is None:
            offers.append(self._next_new)
        return offers

    def start(self, episode: int) -> int:
        """Mark an episode that `offers` gave as running; returns its attempt, from 1."""
        if self._again and self._again[0] == episode:
            self._again.popleft()
        else:
            self._next_new += 1
        self._episodes[episode].attempts += 1
        return self._episodes[episode].attempts

    def avoided(self, episode: int) -> set[str]:
        """Actors on which the episode failed before."""
        return self._episodes[episode].failed_on

    def finish(self, episode: int, fault: Fault | None, actor: str, versions: tuple[int, int] | None = None) -> bool:
        """An attempt ended. True: it is the episode's result. False: it will be repeated: an infrastructure fault, or
        too old already. `versions`: as the summary's."""
        state = self._episodes[episode]
        if state.done:
            raise ValueError(f"episode {episode} of {self.collection_id} is done already")
        if fault is not None and fault.retryable and state.attempts < self.max_attempts and not self._cancelled:
            state.failed_on.add(actor)
            self._repeat(episode)
            return False
        state.oldest_version = versions[0] if versions and fault is None else None  # what failed has no age
        if self._is_dropped(episode) and state.attempts < self.max_attempts and not self._cancelled:
            self.late += 1
            self._repeat(episode)
            return False
        state.done = True
        self.failed += fault is not None
        group = episode // self.group_size
        self._open[group] -= 1
        if self._open[group] == 0:
            self._ready.append(group)
        return True

    def updated(self, version: int) -> None:
        """The trainer gave new weights."""
        self._version = version
        self._taken = 0

    def take(self) -> Handout | None:
        """The next finished group, in order of completion, or of age where that is bounded; each is handed out once.
        None when none is ready.

        A group in which a trajectory became too old while it waited is not ready any more: that one is made again.
        """
        while self._ready:
            group = min(self._ready, key=self._age) if self.staleness.maximum is not None else self._ready[0]
            self._ready.remove(group)
            members = range(group * self.group_size, (group + 1) * self.group_size)
            late = [e for e in members if self.staleness.late(self._episodes[e].oldest_version, self._version)]
            again = [e for e in late if self._is_dropped(e) and self._episodes[e].attempts < self.max_attempts]
            if not again or self._cancelled:
                self.late += len(late)
                self._handed_out += 1
                self._taken += 1
                expired = tuple(late) if self.staleness.drop else ()
                self.failed += len(expired)
                return Handout(group, expired)
            self.late += len(again)
            for episode in again:
                self._episodes[episode].done = False
                self._open[group] += 1
                self._repeat(episode)
        return None

    def _age(self, group: int) -> int:
        """The oldest version in the group, or the newest there is where nothing was sampled."""
        members = self._episodes[group * self.group_size : (group + 1) * self.group_size]
        return min((e.oldest_version for e in members if e.oldest_version is not None), default=self._version)

    def _repeat(self, episode: int) -> None:
        self._again.append(episode)
        self.retries += 1

    def _is_dropped(self, episode: int) -> bool:
        late = self.staleness.late(self._episodes[episode].oldest_version, self._version)
        return late and self.staleness.drop

    def cancel(self) -> None:
        """Start nothing more."""
        self._cancelled = True


class Scheduler:
    """Matches waiting episodes with free slots."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._running: dict[str, set[tuple[str, int]]] = {}
        self._collections: dict[str, Collection] = {}
        self._turn: deque[str] = deque()

    def add_actor(self, actor: str, slots: int) -> None:
        """Offer an actor's slots."""
        self._slots[actor] = slots
        self._running[actor] = set()

    def remove_actor(self, actor: str) -> bool:
        """Offer an actor's slots no longer; what runs there is reported through `finish`. False: it was gone."""
        return self._slots.pop(actor, None) is not None

    def add(self, collection: Collection) -> None:
        """Take on a collection; collections share the slots by turns."""
        self._collections[collection.collection_id] = collection
        self._turn.append(collection.collection_id)

    def drop(self, collection_id: str) -> None:
        """Forget a collection."""
        self._collections.pop(collection_id, None)
        if collection_id in self._turn:
            self._turn.remove(collection_id)

    @property
    def running(self) -> int:
        """Episodes running now."""
        return sum(len(episodes) for episodes in self._running.values())

    @property
    def slots(self) -> int:
        """Slots of all actors."""
        return sum(self._slots.values())

    @property
    def actors(self) -> list[str]:
        """Actors whose slots are on offer."""
        return list(self._slots)

    def next(self) -> Assignment | None:
        """The next episode to start and the least loaded actor for it; None when nothing can start."""
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
        """The trainer gave new weights of that version."""
        for collection in self._collections.values():
            collection.updated(version)

    def finish(self, assignment: Assignment, fault: Fault | None, versions: tuple[int, int] | None = None) -> bool:
        """The assignment ended; see `Collection.finish`. A dropped collection's episodes end without consequence."""
        self._running[assignment.actor].discard((assignment.collection_id, assignment.episode))
        if assignment.actor not in self._slots and not self._running[assignment.actor]:
            del self._running[assignment.actor]
        collection = self._collections.get(assignment.collection_id)
        return collection is not None and collection.finish(assignment.episode, fault, assignment.actor, versions)

    def _place(self, avoided: set[str]) -> str | None:
        """The actor with the largest share of free slots. One where the episode failed is taken only if there is no
        other at all; if the others are merely full, the episode waits."""
        candidates = [actor for actor in self._slots if actor not in avoided] or list(self._slots)
        free = [actor for actor in candidates if len(self._running[actor]) < self._slots[actor]]
        return min(free, key=lambda actor: len(self._running[actor]) / self._slots[actor], default=None)
