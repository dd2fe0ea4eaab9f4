"""Staleness: what is handed out is young enough or counted, and what would come too late does not start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.episode_state import MOST_CUTS, Handout
from rollout_service.collecting.scheduler import Assignment, Scheduler
from rollout_service.collecting.staleness import Staleness
from rollout_service.errors import Fault, FaultKind

FAULT = Fault(FaultKind.SERVICE, "RayActorError", "the actor died", retryable=True)
HOPELESS = Fault(FaultKind.USER_SIMULATOR, "AuthenticationError", "bad key", retryable=False)


class Run:
    """A collection that a scheduler runs and a trainer takes from. It notes what happens by itself, and checks each
    step against its notes."""

    def __init__(
        self,
        groups: int,
        group_size: int,
        slots: list[int],
        staleness: Staleness,
        *,
        attempts: int = 3,
        buffered: int = 64,
    ) -> None:
        self.collection = Collection(
            "c", groups, group_size, max_attempts=attempts, max_buffered_groups=buffered, staleness=staleness
        )
        self.scheduler = Scheduler()
        for i, n in enumerate(slots):
            self.scheduler.add_actor(f"a{i}", n)
        self.scheduler.add(self.collection)
        self.groups, self.group_size, self.attempts = groups, group_size, attempts
        self.staleness = staleness
        self.version = 0
        self.taken = 0
        """Groups since the last update."""
        self.running: list[tuple[Assignment, int]] = []
        """With the version at the start."""
        self.results: dict[int, tuple[int | None, Fault | None]] = {}
        """Oldest version and fault of each episode that is done."""
        self.started: Counter[int] = Counter()
        self.cuts: Counter[int] = Counter()
        """Attempts that an update ended, by episode."""
        self.repeated: Counter[str] = Counter()
        """Attempts by why they were no result: `fault` or `late`."""
        self.handed_out: list[int] = []
        self.start_order: list[int] = []
        """Groups, by their first start."""
        self.delivered_late = 0
        self.lost_late = 0
        """Episodes that were cut too often."""
        self.min_version: int | None = None
        self.failed = 0

    def is_late(self, oldest: int | None) -> bool:
        maximum = self.staleness.maximum
        return maximum is not None and oldest is not None and self.version - oldest > maximum

    def start_all(self) -> None:
        while (assignment := self.scheduler.next()) is not None:
            episode = assignment.episode
            assert episode not in [running.episode for running, _ in self.running], "it runs already"
            assert episode // self.group_size not in self.handed_out
            if episode in self.results:  # it was done, and became late while it waited
                oldest, _ = self.results.pop(episode)
                assert self.staleness.drop
                assert self.is_late(oldest)
                self.repeated["late"] += 1
            self.started[episode] += 1
            assert assignment.attempt == self.started[episode] <= self.attempts + self.cuts[episode]
            if episode // self.group_size not in self.start_order:
                self.start_order.append(episode // self.group_size)
            self.running.append((assignment, self.version))

    def finish(self, index: int, fault: Fault | None = None, oldest: int | None = None) -> None:
        """The running episode of that index ends. `oldest`: version that sampled; None: that at its start."""
        assignment, at_start = self.running.pop(index)
        episode = assignment.episode
        versions = at_start if oldest is None else oldest, self.version
        is_result = self.scheduler.finish(assignment, fault, versions)
        may_repeat = self.started[episode] - self.cuts[episode] < self.attempts
        if fault is not None:
            assert is_result == (not fault.retryable or not may_repeat)
            why = "fault"
        else:
            assert is_result == (not (self.staleness.drop and self.is_late(versions[0])) or not may_repeat)
            why = "late"
        if is_result:
            self.results[episode] = (None if fault else versions[0]), fault
        else:
            self.repeated[why] += 1

    def update(self, by: int = 1) -> None:
        self.version += by
        self.taken = 0
        self.min_version = self.scheduler.updated(self.version).get("c")

    def cut(self, sampled: Callable[[Assignment, int], bool]) -> None:
        """What the last update leaves too old in flight ends, as far as `sampled` says that it has sampled at all."""
        for assignment, oldest in list(self.running):
            is_doomed = sampled(assignment, oldest) and self.min_version is not None and oldest < self.min_version
            could_be_in_time = not (self.staleness.drop and self.is_late(oldest))
            assert not (is_doomed and could_be_in_time), "nothing valid is cut"
            assert is_doomed or could_be_in_time or not sampled(assignment, oldest), "all that is doomed is cut"
            if is_doomed:
                self.running.remove((assignment, oldest))
                self.cuts[assignment.episode] += 1
                is_given_up = self.scheduler.cut(assignment)
                assert is_given_up == (self.cuts[assignment.episode] == MOST_CUTS)
                if is_given_up:
                    self.results[assignment.episode] = None, HOPELESS
                    self.lost_late += 1
                else:
                    self.repeated["late"] += 1

    def take(self) -> Handout | None:
        handout = self.collection.take()
        if handout is None:
            return None
        assert handout.group not in self.handed_out, "handed out twice"
        members = range(handout.group * self.group_size, (handout.group + 1) * self.group_size)
        assert not {running.episode for running, _ in self.running} & set(members), "one of them still runs"
        late = [episode for episode in members if self.is_late(self.results[episode][0])]
        assert list(handout.expired) == (late if self.staleness.drop else [])
        if self.staleness.drop:
            charged = [self.started[episode] - self.cuts[episode] for episode in late]
            assert all(each == self.attempts for each in charged), "it could have been made again"
        self.delivered_late += len(late)
        faults = [episode for episode in members if self.results[episode][1] is not None]
        self.failed += len(set(faults) | set(handout.expired))
        self.handed_out.append(handout.group)
        self.taken += 1
        return handout

    def end_well(self) -> None:
        """Play on, and nothing goes wrong any more."""
        for _ in range(20 * self.groups * self.group_size):
            self.start_all()
            if self.running:
                self.finish(0)
            elif self.take() is None:
                if self.collection.exhausted:
                    break
                self.update()

    def check_end(self) -> None:
        assert self.collection.exhausted
        assert self.running == []
        assert self.scheduler.running == 0
        assert sorted(self.handed_out) == list(range(self.groups))
        assert sorted(self.results) == list(range(self.groups * self.group_size))
        assert self.collection.late == self.repeated["late"] + self.delivered_late + self.lost_late
        assert self.collection.retries == self.repeated.total() == self.started.total() - len(self.results)
        assert self.collection.failed == self.failed
        assert self.collection.waiting == 0


stalenesses = st.builds(
    Staleness,
    maximum=st.sampled_from([None, 0, 1, 2]),
    drop=st.booleans(),
    groups_per_update=st.sampled_from([None, None, 1, 2, 3]),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["finish", "finish", "finish", "fault", "hopeless", "update", "update", "take"]),
        st.integers(0, 20),
    ),
    max_size=60,
)


@given(
    groups=st.integers(1, 5),
    group_size=st.integers(1, 3),
    attempts=st.integers(1, 3),
    slots=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    buffered=st.integers(1, 4),
    staleness=stalenesses,
    events=steps,
)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_each_episode_ends_once_and_none_is_handed_out_too_old_and_uncounted(
    groups, group_size, attempts, slots, buffered, staleness, events
):
    run = Run(groups, group_size, slots, staleness, attempts=attempts, buffered=buffered)
    for what, number in events:
        run.start_all()
        if what == "update":
            run.update(1 + number % 2)
        elif what == "take":
            run.take()
        elif run.running and what == "finish":
            run.finish(number % len(run.running), oldest=max(0, run.version - number // 5))
        elif run.running:
            run.finish(number % len(run.running), {"fault": FAULT, "hopeless": HOPELESS}[what])
    run.end_well()
    event(f"late: {run.collection.late > 0}, drop: {staleness.drop}, expired: {run.failed > 0}")
    run.check_end()


@given(
    groups=st.integers(1, 5),
    group_size=st.integers(1, 3),
    attempts=st.integers(1, 3),
    slots=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    staleness=stalenesses,
    begun=st.integers(0, 2**20),
    events=steps,
)
@settings(max_examples=80, deadline=None)
def test_an_update_cuts_all_that_can_no_longer_be_in_time_and_nothing_else_and_nothing_is_lost(
    groups, group_size, attempts, slots, staleness, begun, events
):
    run = Run(groups, group_size, slots, staleness, attempts=attempts)
    for what, number in events:
        run.start_all()
        if what == "update":
            run.update(1 + number % 3)
            run.cut(lambda assignment, _: bool(begun >> (assignment.episode + assignment.attempt) & 1))
        elif what == "take":
            run.take()
        elif run.running and what == "finish":
            run.finish(number % len(run.running))
        elif run.running and what == "fault":
            run.finish(number % len(run.running), FAULT)
    run.end_well()
    event(f"cut: {run.cuts.total() > 0}, given up: {run.lost_late > 0}")
    run.check_end()


def keep_pace(run: Run, data: st.DataObject, *, in_order: bool) -> None:
    """The trainer takes `groups_per_update` groups and updates, over and over; each episode samples at the version at
    which it starts. Actors may die."""
    pace = run.staleness.groups_per_update
    while not run.collection.exhausted:
        run.start_all()
        is_ready = any(group not in run.handed_out and done(run, group) for group in range(run.groups))
        can = ["finish", "fault"] if run.running else []
        can += ["update"] if run.taken == pace else ["take"] if is_ready else []
        assert can, "deadlock: nothing runs, and the trainer waits for a group"
        what = data.draw(st.sampled_from(can))
        if what == "update":
            run.update()
        elif what == "take":
            run.take()
        else:
            first = min(running.episode // run.group_size for running, _ in run.running)
            index = data.draw(st.integers(0, len(run.running) - 1))
            if in_order and what == "finish":
                index = next(i for i, (a, _) in enumerate(run.running) if a.episode // run.group_size == first)
            is_last = run.started[run.running[index][0].episode] == run.attempts
            if what == "finish" or not is_last:
                run.finish(index, FAULT if what == "fault" else None)


def done(run: Run, group: int) -> bool:
    return all(group * run.group_size + sample in run.results for sample in range(run.group_size))


sizes = {"groups": st.integers(1, 8), "group_size": st.integers(1, 2), "per_update": st.integers(1, 3)}


@given(maximum=st.integers(0, 3), drop=st.booleans(), data=st.data(), **sizes)
@settings(max_examples=60, deadline=None)
def test_at_the_trainer_s_pace_nothing_is_late_where_groups_complete_in_the_order_in_which_they_started(
    groups, group_size, per_update, maximum, drop, data
):
    run = Run(groups, group_size, [groups * group_size], Staleness(maximum, drop, per_update))
    keep_pace(run, data, in_order=True)
    run.check_end()
    assert run.collection.late == run.collection.failed == 0


@given(slots=st.lists(st.integers(1, 4), min_size=1, max_size=2), drop=st.booleans(), data=st.data(), **sizes)
@settings(max_examples=60, deadline=None)
def test_at_the_trainer_s_pace_nothing_is_late_in_any_order_where_everything_must_be_of_the_newest_version(
    groups, group_size, per_update, slots, drop, data
):
    run = Run(groups, group_size, slots, Staleness(0, drop, per_update))
    keep_pace(run, data, in_order=False)
    run.check_end()
    assert run.collection.late == run.collection.failed == 0


@given(
    maximum=st.integers(0, 3),
    slots=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    drop=st.booleans(),
    data=st.data(),
    **sizes,
)
@settings(max_examples=60, deadline=None)
def test_at_the_trainer_s_pace_nothing_ever_waits_for_ever_and_only_what_was_overtaken_is_late(
    groups, group_size, per_update, maximum, slots, drop, data
):
    run = Run(groups, group_size, slots, Staleness(maximum, drop, per_update))
    keep_pace(run, data, in_order=False)
    run.check_end()
    event(f"late: {run.collection.late > 0}")
    assert run.handed_out != run.start_order or run.collection.late == 0


@given(groups=st.integers(1, 20), maximum=st.integers(0, 3), per_update=st.integers(1, 4), data=st.data())
@settings(deadline=None)
def test_as_many_groups_start_as_can_be_handed_out_in_time(groups, maximum, per_update, data):
    run = Run(groups, 1, [groups], Staleness(maximum, groups_per_update=per_update))
    updates = 0
    while not run.collection.exhausted:
        run.start_all()
        assert len(run.start_order) == min(groups, (updates + maximum + 1) * per_update)
        if run.taken == per_update and data.draw(st.booleans()):
            run.update()
            updates += 1
        elif run.running:
            run.finish(0)
        elif run.taken < per_update:
            run.take()
        else:
            run.update()
            updates += 1


@given(
    groups=st.integers(1, 4),
    group_size=st.integers(1, 3),
    drop=st.booleans(),
    per_update=st.integers(1, 3),
    events=steps,
)
def test_without_a_maximum_updates_change_nothing(groups, group_size, drop, per_update, events):
    plain = Run(groups, group_size, [3], Staleness())
    other = Run(groups, group_size, [3], Staleness(None, drop, per_update))
    for what, number in events:
        for run in (plain, other):
            run.start_all()
            if what == "take":
                run.take()
            elif what == "update" and run is other:
                run.update(1 + number)
            elif run.running and what == "finish":
                run.finish(number % len(run.running), oldest=0)
            elif run.running and what == "fault":
                run.finish(number % len(run.running), FAULT)
        one, two = ([(a.episode, a.attempt, a.actor) for a, _ in run.running] for run in (plain, other))
        assert one == two
        assert plain.handed_out == other.handed_out
    assert other.collection.late == 0


# One at a time --------------------------------------------------------------------------------------------------------


def collection(groups: int = 1, group_size: int = 1, *, attempts: int = 3, **staleness) -> Collection:
    return Collection("c", groups, group_size, max_attempts=attempts, staleness=Staleness(**staleness))


def played(collection: Collection, oldest: int | None, newest: int | None = None) -> bool:
    """Start the first episode on offer and end it; whether that was its result."""
    episode = collection.offers()[0]
    collection.start(episode)
    return collection.finish(episode, None, "a", None if oldest is None else (oldest, newest or oldest))


def test_a_trajectory_of_exactly_the_maximum_age_is_in_time():
    it = collection(maximum=2)
    it.updated(2)
    assert played(it, 0)
    assert it.take() == Handout(0)
    assert it.late == 0


def test_an_episode_that_ends_too_old_is_made_again_at_once():
    it = collection(maximum=1)
    it.updated(2)
    assert not played(it, 0)
    assert it.offers() == [0]
    assert played(it, 2)
    assert it.take() == Handout(0)
    assert (it.late, it.retries, it.failed) == (1, 1, 0)


def test_its_oldest_token_tells_a_trajectory_s_age():
    it = collection(maximum=1)
    it.updated(2)
    assert not played(it, 0, 2)
    assert played(it, 1, 2)


def test_a_trajectory_in_which_nothing_was_sampled_is_never_late():
    it = collection(maximum=0)
    it.updated(7)
    assert played(it, None)
    it.updated(9)
    assert it.take() == Handout(0)
    assert it.late == 0


def test_of_a_group_that_waited_too_long_only_the_late_trajectories_are_made_again():
    it = collection(group_size=3, maximum=1)
    assert [played(it, 0), played(it, 1), played(it, 0)] == [True, True, True]
    it.updated(2)
    assert it.take() is None
    assert (it.late, it.done, it.waiting) == (2, 1, 2)
    assert [played(it, 2), played(it, 2)] == [True, True]
    assert it.take() == Handout(0)
    assert (it.late, it.retries, it.failed, it.exhausted) == (2, 2, 0, True)


def test_a_late_group_does_not_keep_the_next_one_from_being_handed_out():
    it = collection(groups=2, maximum=0)
    assert played(it, 0)
    it.updated(1)
    assert played(it, 1)
    assert it.take() == Handout(1)
    assert it.take() is None
    assert played(it, 1)
    assert it.take() == Handout(0)


def test_what_is_too_old_in_every_attempt_is_handed_out_as_expired_and_failed():
    it = collection(group_size=2, attempts=2, maximum=0)
    it.updated(1)
    assert not played(it, 0)
    assert played(it, 0), "the last attempt is the result"
    assert played(it, 1)
    assert it.take() == Handout(0, expired=(0,))
    assert (it.late, it.failed, it.retries) == (2, 1, 1)


def test_where_late_ones_are_delivered_they_are_counted_and_nothing_is_repeated():
    it = collection(groups=2, maximum=0, drop=False)
    it.updated(1)
    assert [played(it, 0), played(it, 1)] == [True, True]
    assert it.late == 0, "counted when it is handed out: it may be later still"
    assert it.take() == Handout(0)
    it.updated(2)
    assert it.take() == Handout(1)
    assert (it.late, it.retries, it.failed, it.exhausted) == (2, 0, 0, True)


def test_a_cancelled_collection_makes_nothing_again_and_still_hands_out_nothing_too_old():
    it = collection(groups=2, maximum=0)
    assert played(it, 0)
    episode = it.offers()[0]
    it.start(episode)
    it.cancel()
    it.updated(1)
    assert it.finish(episode, None, "a", (0, 0))
    assert [it.take(), it.take(), it.take()] == [Handout(0, expired=(0,)), Handout(1, expired=(1,)), None]
    assert (it.late, it.retries, it.failed, it.exhausted) == (2, 0, 2, True)


def test_an_episode_that_is_always_cut_is_reported_and_a_cut_never_counts_as_an_attempt():
    it = collection(attempts=1, maximum=0)
    for version in range(1, MOST_CUTS):
        it.start(0)
        it.updated(version)
        assert not it.cut(0)
    it.start(0)
    assert it.cut(0), "the trainer updates faster than it can be played"
    assert it.take() == Handout(0)
    assert (it.late, it.failed, it.retries) == (MOST_CUTS, 1, MOST_CUTS - 1)


@pytest.mark.parametrize(("limit", "least"), [({"maximum": 2}, 3), ({"maximum": 2, "drop": False}, None), ({}, None)])
def test_only_where_late_ones_are_dropped_is_there_a_version_below_which_none_is_in_time(limit, least):
    staleness = Staleness(**limit)
    assert staleness.min_version(5) == least
    if least is not None:
        assert (staleness.late(least, 5), staleness.late(least - 1, 5)) == (False, True)


def test_no_group_starts_that_would_come_too_late_but_an_open_one_goes_on_and_an_update_makes_room():
    it = collection(groups=3, group_size=2, maximum=0, groups_per_update=1)
    it.start(0)
    assert it.offers() == [1], "the group is open already"
    it.start(1)
    assert it.offers() == []
    assert it.finish(0, None, "a", (0, 0))
    assert it.finish(1, None, "a", (0, 0))
    assert it.take() == Handout(0)
    assert it.offers() == [], "it would be handed out after the next update"
    it.updated(1)
    assert it.offers() == [2]


def test_what_is_made_again_starts_where_no_new_group_may():
    it = collection(groups=2, maximum=0, groups_per_update=1)
    it.start(0)
    assert not it.finish(0, FAULT, "a")
    assert it.offers() == [0]


def test_without_the_trainer_s_pace_no_group_is_held_back():
    it = collection(groups=9, maximum=0)
    for expected in range(9):
        assert it.offers() == [expected]
        it.start(expected)


@pytest.mark.parametrize(
    ("maximum", "order"), [(None, [0, 1, 2, 3]), (5, [2, 3, 0, 1])], ids=["without a maximum", "with one"]
)
def test_groups_are_handed_out_as_they_complete_or_the_oldest_first_where_age_is_bounded(maximum, order):
    it = collection(groups=4, maximum=maximum)
    it.updated(2)
    for oldest in (2, None, 0, 1):  # in one nothing was sampled: it cannot become late
        assert played(it, oldest)
    assert [it.take().group for _ in range(4)] == order


def test_a_group_that_younger_ones_overtake_until_it_is_too_old_is_made_again():
    it = collection(groups=3, maximum=1, groups_per_update=1)
    it.start(0)
    for version, overtaking in enumerate((1, 2), start=1):
        it.start(overtaking)
        assert it.finish(overtaking, None, "a", (version - 1, version - 1))
        assert it.take() == Handout(overtaking)
        it.updated(version)
    assert not it.finish(0, None, "a", (0, 0))
    assert played(it, 2)
    assert it.take() == Handout(0)
    assert (it.late, it.failed) == (1, 0)


def test_of_two_groups_that_are_ready_in_time_neither_is_late_at_the_trainer_s_pace():
    it = collection(groups=3, maximum=1, groups_per_update=1)
    it.start(0)
    it.start(1)
    assert it.finish(1, None, "a", (0, 0))
    assert it.take() == Handout(1)
    it.updated(1)
    it.start(2)
    assert it.finish(2, None, "a", (1, 1))
    assert it.finish(0, None, "a", (0, 0))  # ready, and young enough for the trainer's next step
    assert it.take() is not None
    it.updated(2)
    assert it.take() is not None
    assert it.late == 0


def test_a_failed_episode_that_becomes_too_old_is_one_failed_episode():
    it = collection(attempts=1, maximum=0)
    it.start(0)
    assert it.finish(0, FAULT, "a", (0, 0)), "it had sampled some turns"
    it.updated(1)
    assert it.take() is not None
    assert it.failed == 1


def test_a_fault_that_no_retry_can_mend_is_not_retried_for_its_age():
    it = collection(maximum=0)
    it.updated(1)
    it.start(0)
    assert it.finish(0, HOPELESS, "a", (0, 0))


def test_a_failed_episode_is_not_made_again_for_its_age():
    it = collection(maximum=0)
    it.start(0)
    assert it.finish(0, HOPELESS, "a", (0, 0))
    it.updated(1)
    assert it.take() == Handout(0)
    assert (it.failed, it.retries) == (1, 0)


def test_a_group_whose_results_were_lost_after_it_was_handed_out_does_not_hold_back_the_next_one():
    it = Collection("c", 3, 1, staleness=Staleness(0, groups_per_update=1))
    it.restore({}, {0: ()}, [])
    for episode in (0, 1):
        assert it.offers() == [episode], "the trainer may have had group 0 before, and have updated since"
        it.start(episode)
        it.finish(episode, None, "a", (0, 0))
        assert it.take() == Handout(episode)
    assert it.offers() == []
