"""Collection: which episodes of one request wait, run and are done, as a pure state machine.

Invariant: every episode is waiting, running or done. A group is handed out exactly once, when all its episodes are done
and, unless late ones are delivered, none of them is too old. An episode becomes waiting again only after a retryable
fault, when it is too old, or when its attempt was lost, handed back or cut; the last three count as no attempt. Nothing
here knows Ray or I/O, and the time is handed in: seconds of a clock that never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from rollout_service.collecting.breaker import EPISODES_IN_A_ROW, Breaker
from rollout_service.collecting.episode_state import EpisodeState, Handout, Kept
from rollout_service.collecting.partial import too_few
from rollout_service.collecting.repeats import Repeats
from rollout_service.collecting.retry import seconds_before_retry
from rollout_service.collecting.roster import Roster
from rollout_service.collecting.shelf import Shelf
from rollout_service.collecting.staleness import ANY_AGE, Staleness
from rollout_service.collecting.unstarted import Unstarted
from rollout_service.errors import Fault

ENDLESS = 1 << 40
"""Number of groups of a collection that has no end. It is more than can ever be played, and still a number."""


class Collection:
    """The state of one request for groups of episodes.

    An episode's index is group × group size + sample index.
    """

    def __init__(
        self,
        collection_id: str,
        groups: int,
        group_size: int,
        *,
        max_attempts: int = 3,
        max_losses: int = 10,
        max_buffered_groups: int = 64,
        staleness: Staleness = ANY_AGE,
        version: int = 0,
        min_group_size: int = 0,
        weight: float = 1.0,
        breaker: Breaker | None = None,
    ) -> None:
        """
        Args:
            groups: number of groups that are handed out; `ENDLESS`: there is no last one.
            max_losses: an episode that lost its actor so many times is given up: it may be what kills them.
            min_group_size: fewest scored trajectories of a group that is data, see `withheld`.
            weight: share of the slots, relative to the other collections' weights.
            breaker: pauses the collection while one fault stops all episodes; None: it never pauses.
        """
        self.collection_id = collection_id
        self.group_size = group_size
        self.max_attempts = max_attempts
        self.max_losses = max_losses
        self.staleness = staleness
        self.min_group_size = min_group_size
        self.weight = weight
        self.breaker = breaker or Breaker(group_size, None)
        self.quarantined: list[int] = []
        """Episodes that were given up because they lost their actor too often."""
        self.retries = 0
        self.failed = 0
        self.late = 0
        """Trajectories that were too old, whether they were cut in flight, dropped or delivered."""
        self._version = version
        self._max_buffered = max_buffered_groups
        self._roster = Roster(group_size)
        self._roster.reach(min(groups, 1))
        self.unstarted = Unstarted(groups, group_size)
        self._again = Repeats()
        self.shelf = Shelf()
        self.ahead = 0
        """Groups that were taken before their reader asked for them."""
        self._cancelled = False

    @property
    def done(self) -> int:
        """Number of episodes that are done, including those that failed and those not yet handed out."""
        return self._roster.done - len(self.unstarted.before)

    @property
    def size(self) -> int:
        """Number of episodes that this collection plays."""
        return self.unstarted.end - len(self.unstarted.before)

    @property
    def waiting(self) -> int:
        """Number of episodes that still have to start, or to start again, and need not rest before."""
        return 0 if self._cancelled else self._new + len(self._again)

    @property
    def _new(self) -> int:
        """Number of new episodes that have to start."""
        return self.unstarted.left

    @property
    def startable(self) -> int:
        """Number of episodes that could start now, if there were slots: new ones only if no reason holds them back."""
        if self._cancelled or self.breaker.is_open:
            return 0
        return (0 if self.held_back else self._new) + len(self._again)

    @property
    def resting(self) -> int:
        """Number of episodes that start again after a pause."""
        return 0 if self._cancelled else self._again.resting

    @property
    def exhausted(self) -> bool:
        """Whether no further group will be handed out."""
        return self.shelf.handed_out == self.unstarted.groups or (self._cancelled and self.shelf.is_empty)

    def skip(self, episodes: Iterable[int]) -> None:
        """Take episodes as done before this collection, of groups that still lack others. Call it before any start.
        Such a group counts as begun: nothing holds it back. No handout has these episodes."""
        self.unstarted.skip(episodes)
        self._roster.reach(1 + max(self.unstarted.before, default=-1) // self.group_size)
        for episode in self.unstarted.before:
            self._roster.end(episode, scored=True)
        self._reach_next()

    def _reach_next(self) -> None:
        """Have the states of the group that begins next."""
        if self.unstarted.next < self.unstarted.end:
            self._roster.reach(1 + self.unstarted.next // self.group_size)

    def restore(
        self, stored: Mapping[int, Kept], delivered: Mapping[int, tuple[int, ...]], acknowledged: Iterable[int]
    ) -> None:
        """Go on where a collection of the same request stopped when its process died. Call it before any start,
        after `skip`.

        Groups that were handed out and not acknowledged are handed out again, as they were. Episodes that ran start
        again, and the lost attempt does not count.

        Args:
            stored: the episodes with a result.
            delivered: by group that was handed out: its episodes that were too old, see `Handout`.
            acknowledged: groups that the reader has. Nothing more is known of their episodes.
        """
        over = set(acknowledged)
        begun = 1 + max({episode // self.group_size for episode in stored} | over, default=-1)
        self._roster.reach(begun)
        for episode, kept in stored.items():
            state = self._roster[episode]
            state.attempts = state.charged = kept.attempt
            state.oldest_version = kept.oldest_version
            self.failed += kept.failed
            is_expired = episode in delivered.get(episode // self.group_size, ())
            self._roster.end(episode, scored=kept.scored and not is_expired)
        for group in over:
            for episode in self._roster.members(group):
                self._roster.end(episode)
        complete = (group for group in range(self._roster.groups) if self._roster.is_complete(group))
        finished = [group for group in complete if group not in over]
        again = [Handout(group, delivered[group]) for group in finished if group in delivered]
        self.shelf.restore(again, (group for group in finished if group not in delivered), len(over), delivered)
        for episode in range(begun * self.group_size):
            if not self._roster[episode].done:
                self._again.add(episode, 0.0, is_suspect=False)
        self.unstarted.go_to(begun * self.group_size)
        self._reach_next()

    def acknowledge(self, groups: Iterable[int]) -> None:
        """Note that the reader has these groups. Those that `restore` would hand out again are not."""
        self.shelf.acknowledge(groups)

    def is_finished(self, group: int) -> bool:
        """Whether each episode of a group that has begun has a result."""
        return self._roster.is_complete(group)

    @property
    def held_back(self) -> Literal["buffer", "staleness", "enough"] | None:
        """Why no new group may start. `buffer`: too many finished groups wait to be taken. `staleness`: the group would
        be too old when it is handed out. `enough`: those under way are likely to be enough, see `further_groups`. None:
        a group may start, or there is no new group left."""
        if self._cancelled or not self.unstarted.left or self.unstarted.of_begun:
            return None
        if len(self.shelf.ready) + self.ahead >= self._max_buffered:
            return "buffer"
        if not self._further:
            return "enough"
        return None if self.staleness.in_time(self.shelf.taken + self._before_new) else "staleness"

    @property
    def _further(self) -> int:
        """Number of groups that are to begin."""
        return self.unbegun

    @property
    def _before_new(self) -> int:
        """Number of groups that are handed out before one that begins now."""
        return self.begun - self.shelf.handed_out

    def offers(self, now: float = math.inf) -> list[int]:
        """Episodes that may start next, in order of preference: one that is repeated, then the next new one, then one
        that may be what kills its actors.

        A new group is not offered while `held_back` has a reason. While the first faults may have a common cause, new
        episodes come first, because they tell.

        Args:
            now: the time; by default every pause is over.
        """
        if self._cancelled or not self.breaker.admits(now):
            return []
        again, suspect = self._again.first(now)
        new = self.unstarted.next if self.unstarted.left and self.held_back is None else None
        first = [new, again] if self.breaker.suspects else [again, new]
        return [episode for episode in (*first, suspect) if episode is not None]

    def wakes_at(self, now: float) -> float:
        """When `offers` will change by the passing of time alone; infinity: never."""
        return min(self._again.wakes_at(now), self.breaker.wakes_at(now))

    def start(self, episode: int, now: float = 0.0) -> int:
        """Mark an episode from `offers` as running. Returns the number of its attempt, from 1."""
        if not self._again.take(episode):
            self.unstarted.start()
            self._reach_next()
        self.breaker.started(now)
        state = self._roster[episode]
        state.started = now
        state.attempts += 1
        state.charged += 1
        return state.attempts

    def state(self, episode: int) -> EpisodeState:
        """What is known of the episode. Only to be read."""
        return self._roster[episode]

    def finish(
        self,
        episode: int,
        fault: Fault | None,
        actor: str,
        versions: tuple[int, int] | None = None,
        now: float = 0.0,
        *,
        was_answered: bool = False,
        scored: bool = True,
    ) -> bool:
        """Record the end of an attempt.

        Args:
            versions, was_answered: as in `EpisodeSummary`. scored: whether it has a score, if there was no fault.

        Returns:
            True if the attempt is the episode's result. False if the episode is repeated, because of a retryable fault
            or because it is already too old.

        Raises:
            ValueError: the episode is done already.
        """
        state = self._running(episode)
        if fault is not None and self._is_repeated(episode, fault, now, was_answered):
            state.failed_on |= {actor}
            # While it pauses the whole collection rests, not this episode alone.
            self._repeat(episode, 0.0 if self.breaker.is_open else now + seconds_before_retry(state.charged))
            return False
        if fault is None:
            self.breaker.ended_otherwise()
        state.oldest_version = versions[0] if versions and fault is None else None  # a failure has no age
        if self._is_dropped(episode) and state.charged < self.max_attempts and not self._cancelled:
            self.late += 1
            self._repeat(episode)
            return False
        self._end(episode, failed=fault is not None, scored=scored)
        return True

    def _is_repeated(self, episode: int, fault: Fault, now: float, was_answered: bool) -> bool:
        """Whether an episode that a fault stopped is tried again."""
        if self._cancelled:
            return False
        state = self._roster[episode]
        left = self.size - self.done if self.size >= EPISODES_IN_A_ROW else EPISODES_IN_A_ROW
        spared = self.breaker.failed(episode, fault, state.started, now, left, was_answered=was_answered)
        if spared is not None:
            for spared_one in spared | {episode}:
                self._roster[spared_one].charged -= 1
            return True
        may_pass = fault.retryable or (self.size >= EPISODES_IN_A_ROW and self.breaker.may_be_first(fault))
        return may_pass and state.charged < self.max_attempts

    def lose(self, episode: int, now: float = 0.0) -> bool:
        """Record that an attempt was lost with its actor. It does not count as one. Returns True if the episode is
        given up: it was lost `max_losses` times, or the collection was cancelled."""
        state = self._running(episode)
        state.losses += 1
        is_given_up = state.losses >= self.max_losses
        if is_given_up and not self._cancelled:
            self.quarantined.append(episode)
        return self._broken_off(episode, now + seconds_before_retry(state.losses), is_given_up=is_given_up)

    def hand_back(self, episode: int) -> bool:
        """Record that an attempt was broken off because its actor goes away. It does not count as one. Returns True if
        the episode is given up: the collection was cancelled."""
        self._running(episode)
        return self._broken_off(episode)

    def cut(self, episode: int) -> bool:
        """Record that an attempt was ended in flight because it would be too old. It counts as late, and not as an
        attempt. Returns True if the episode is given up: it was cut `MOST_CUTS` times, or all was cancelled."""
        state = self._running(episode)
        state.cuts += not self._cancelled
        self.late += not self._cancelled
        return self._broken_off(episode, is_given_up=state.is_always_cut)

    def _broken_off(self, episode: int, rested: float = 0.0, *, is_given_up: bool = False) -> bool:
        """Have an episode whose attempt does not count start again; or give it up. Returns whether it was given up."""
        self._roster[episode].charged -= 1
        if not (is_given_up or self._cancelled):
            self._repeat(episode, rested)
            return False
        self._end(episode, failed=True)
        return True

    def _running(self, episode: int) -> EpisodeState:
        state = self._roster[episode]
        if state.done:
            raise ValueError(f"episode {episode} of {self.collection_id} is done already")
        return state

    def _end(self, episode: int, *, failed: bool, scored: bool = False) -> None:
        self.failed += failed
        if self._roster.end(episode, scored=scored and not failed):
            self.shelf.ready.append(episode // self.group_size)

    def updated(self, version: int) -> None:
        """Note that the trainer gave new weights, of this version."""
        self._version = version
        self.shelf.taken = 0

    def take(self) -> Handout | None:
        """The next finished group; None when no group is ready.

        Groups come in order of completion or, with a maximum age, the oldest first. If a trajectory became too old
        while its group waited, that episode is repeated and the group is no longer ready.
        """
        if (handout := self.shelf.take_again()) is not None:
            return handout
        age = None if self.staleness.maximum is None else lambda group: self._roster.age(group, self._version)
        while self.shelf.ready:
            group = self.shelf.pick(age)
            members = self._roster.members(group)
            late = [e for e in members if self.staleness.late(self._roster[e].oldest_version, self._version)]
            again = [e for e in late if self._is_dropped(e) and self._roster[e].charged < self.max_attempts]
            if not again or self._cancelled:
                self.late += len(late)
                expired = tuple(late) if self.staleness.drop else ()
                self.failed += len(expired)
                for episode in expired:
                    self._roster[episode].scored = False
                self.shelf.hand_out(group, is_data=not self.withheld(group))
                return Handout(group, expired)
            self.late += len(again)
            for episode in again:
                self._roster.open_again(episode)
                self._repeat(episode)
        return None

    def withheld(self, group: int) -> str:
        """Why a finished group is no data; empty: it is. See `rollout_service.collecting.partial`."""
        return too_few(self._roster.scored(group), self.group_size, self.min_group_size)

    def _repeat(self, episode: int, rested: float = 0.0) -> None:
        """Have the episode start again, at the time `rested` at the earliest."""
        self.retries += 1
        self._again.add(episode, rested, is_suspect=self._roster[episode].is_suspect)

    def _is_dropped(self, episode: int) -> bool:
        late = self.staleness.late(self._roster[episode].oldest_version, self._version)
        return late and self.staleness.drop

    @property
    def begun(self) -> int:
        """Number of groups of which an episode has started."""
        return self.unstarted.begun

    @property
    def unbegun(self) -> int:
        """Number of groups of which no episode has started."""
        return self.unstarted.groups - self.begun

    def begin_no_more(self) -> None:
        """Become a collection of the groups that have begun: they are completed, and no other one begins."""
        self.unstarted.begin_no_more()
        self._roster.cut(self.unstarted.groups)

    def cancel(self) -> None:
        """Start nothing more."""
        self._cancelled = True
