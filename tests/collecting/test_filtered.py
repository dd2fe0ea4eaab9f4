"""A collection that drops groups: it hands out as many as are wanted, and begins as many as that is likely to take."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import ENDLESS
from rollout_service.collecting.episode_state import Kept
from rollout_service.collecting.filtered import FilteredCollection
from rollout_service.collecting.refill import further_groups, is_informative, keep_rate, most_kept
from rollout_service.collecting.scheduler import Assignment, Scheduler
from rollout_service.collecting.staleness import Staleness
from rollout_service.errors import Fault, FaultKind

FAULT = Fault(FaultKind.SERVICE, "OSError", "it broke", retryable=True)


class Run:
    """A filtered collection on some slots, with the verdicts of a filter."""

    def __init__(self, collection: FilteredCollection, slots: int, verdicts: list[bool]) -> None:
        self.collection, self.scheduler = collection, Scheduler()
        self.scheduler.add_actor("a", slots)
        self.scheduler.add(collection)
        self.verdicts = verdicts
        self.running: list[Assignment] = []
        self.given: list[int] = []
        self.dropped: list[int] = []

    def keeps(self, group: int) -> bool:
        return self.verdicts[group % len(self.verdicts)]

    def start(self) -> None:
        while (assignment := self.scheduler.next()) is not None:
            self.running.append(assignment)
        it = self.collection
        is_idle = len(self.running) < self.scheduler.slots
        certain = it.kept + it.undecided
        assert not (is_idle and certain < it.wanted and it.begun < it.unstarted.groups and it.held_back != "buffer"), (
            "a slot idles although a further group is needed for sure"
        )

    def finish(self, number: int, fault: Fault | None, versions: tuple[int, int] | None = None) -> None:
        assignment = self.running.pop(number)
        it, group = self.collection, assignment.episode // self.collection.group_size
        was_gone = it.is_gone(group)
        is_done = self.scheduler.finish(assignment, fault, versions)
        assert not (was_gone and is_done), "nobody wants its result"
        if is_done and it.is_finished(group) and it.keeps == "informative" and not self.keeps(group):
            self.dropped.append(group)
            assert it.drop(group)
            assert not it.drop(group), "once more changes nothing"
        it.let_go()

    def read(self) -> None:
        self.collection.judged(again=False)
        if (handout := self.collection.take()) is None:
            self.collection.let_go()
            return
        if self.keeps(handout.group):
            self.given.append(handout.group)
        else:
            assert self.collection.keeps == "reader", "what the rewards decide is not handed out"
            self.dropped.append(handout.group)
            self.collection.drop(handout.group)


@given(
    wanted=st.integers(1, 5),
    more=st.integers(0, 12),
    group_size=st.integers(1, 3),
    slots=st.integers(1, 8),
    keeps=st.sampled_from(["informative", "reader"]),
    verdicts=st.lists(st.booleans(), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=80)
def test_as_many_groups_as_are_wanted_are_handed_out_or_the_most_have_begun(
    wanted, more, group_size, slots, keeps, verdicts, seed
):
    order = random.Random(seed)
    collection = FilteredCollection("c", wanted + more, group_size, wanted=wanted, keeps=keeps, max_attempts=2)
    run = Run(collection, slots, verdicts)
    while not collection.exhausted:
        run.start()
        if run.running and order.random() < 0.7:
            run.finish(order.randrange(len(run.running)), order.choice([None, None, FAULT]))
        else:
            run.read()
        if not run.running:
            run.read()
    assert len(run.given) == len(set(run.given)) <= wanted
    assert all(run.keeps(group) for group in run.given)
    assert collection.begun <= wanted + more
    if len(run.given) < wanted:
        assert collection.begun == wanted + more
        assert len(run.given) + len(run.dropped) == wanted + more
        assert not collection.is_enough
    else:
        assert collection.is_enough
    assert collection.offers() == []
    assert collection.waiting == 0
    assert collection.kept + collection.dropped + collection.surplus == collection.begun
    for number in reversed(range(len(run.running))):  # what still runs was let go of
        run.finish(number, FAULT)
    assert collection.retries <= 2 * group_size * (wanted + more)


@given(
    missing=st.integers(1, 200), kept=st.integers(0, 300), dropped=st.integers(0, 300), undecided=st.integers(0, 400)
)
def test_further_groups_are_few_but_never_fewer_than_are_needed_for_sure(missing, kept, dropped, undecided):
    rate = keep_rate(kept, dropped)
    further = further_groups(missing, undecided, rate)
    assert further >= missing - undecided
    assert further_groups(missing, undecided + further, rate) == 0
    assert further_groups(missing + 1, undecided, rate) >= further
    assert most_kept(undecided, rate) <= undecided
    if dropped == 0:
        assert further == max(0, missing - undecided), "nothing was dropped: nothing is begun in vain"
    needed = missing / rate
    assert further + undecided <= max(undecided, needed + 3 * (needed / rate) ** 0.5 + 2 / rate)


@given(
    maximum=st.integers(0, 2),
    per_update=st.integers(1, 3),
    group_size=st.integers(1, 2),
    slots=st.integers(1, 8),
    keeps=st.sampled_from(["informative", "reader"]),
    verdicts=st.lists(st.booleans(), min_size=1, max_size=6).filter(any),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_a_trainer_that_updates_after_so_many_kept_groups_never_waits_for_ever(
    maximum, per_update, group_size, slots, keeps, verdicts, seed
):
    order, version, wanted = random.Random(seed), 0, 4 * per_update
    collection = FilteredCollection(
        "c", ENDLESS, group_size, wanted=wanted, keeps=keeps, staleness=Staleness(maximum, True, per_update)
    )
    run = Run(collection, slots, verdicts)
    sampled: dict[tuple[int, int], int] = {}
    while not collection.exhausted:
        while (assignment := run.scheduler.next()) is not None:
            run.running.append(assignment)
            sampled[assignment.episode, assignment.attempt] = version
        before = len(run.given)
        assert run.running or collection.shelf.ready, "nothing runs, and nothing waits to be taken"
        if run.running and order.random() < 0.7:
            number = order.randrange(len(run.running))
            oldest = sampled[run.running[number].episode, run.running[number].attempt]
            run.finish(number, None, (oldest, version))
        else:
            run.read()
        if len(run.given) > before and len(run.given) % per_update == 0:
            version += 1
            run.scheduler.updated(version)
        collection.judged(again=False)
    assert len(run.given) == wanted


def test_half_of_the_groups_are_dropped_and_few_are_begun_in_vain():
    collection = FilteredCollection("c", 320, 2, wanted=32, keeps="informative")
    run = Run(collection, 16, [True, False])
    while not collection.exhausted:
        run.start()
        if run.running:
            run.finish(0, None)
        run.read()
    assert len(run.given) == 32
    assert collection.surplus <= 8
    assert collection.begun <= 72


def test_a_group_that_became_too_old_is_decided_once_more():
    collection = FilteredCollection("c", 5, 1, wanted=1, keeps="informative", staleness=Staleness(0))
    collection.start(0)
    collection.finish(0, None, "a", (0, 0))
    assert (collection.kept, collection.held_back) == (1, "enough")
    collection.updated(1)
    assert collection.take() is None, "it is played again"
    assert (collection.kept, collection.undecided) == (0, 1)
    collection.start(0)
    collection.finish(0, None, "a", (1, 1))
    collection.drop(0)
    assert collection.offers() == [1], "another one takes its place"


def test_a_group_that_is_dropped_while_it_is_played_again_counts_once_and_is_played_no_more():
    collection = FilteredCollection("c", 5, 1, wanted=2, keeps="reader")
    collection.restore({1: Kept(1, None, failed=False)}, {0: (), 1: ()}, [])
    assert collection.offers() == [0], "what came of episode 0 went with the process that handed it out"
    assert collection.drop(0)
    assert (collection.kept, collection.dropped, collection.undecided) == (0, 1, 1)
    assert collection.offers() == [2]


def test_an_endless_collection_begins_groups_whatever_is_dropped():
    collection = FilteredCollection("c", ENDLESS, 1, wanted=ENDLESS, keeps="informative")
    for episode in range(30):
        assert collection.offers() == [episode]
        collection.start(episode)
        collection.finish(episode, None, "a")
        collection.drop(episode)
    assert (collection.dropped, collection.exhausted) == (30, False)


@pytest.mark.parametrize(
    ("rewards", "informative"),
    [((0.0, 1.0), True), ((1.0, 1.0), False), ((None, 1.0), False), ((None, None), False), ((None, 0.5, 1.0), True)],
)
def test_a_group_is_informative_if_its_rewards_differ(rewards, informative):
    assert is_informative(rewards) is informative
    assert is_informative(itertools.chain(rewards, [None])) is informative, "a fault is no reward"
