"""Attempts that were lost with their actor, or handed back: they do not count, and a poison task is found."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.episode_state import SUSPECT_LOSSES
from rollout_service.collecting.scheduler import Assignment, Scheduler
from rollout_service.errors import Fault, FaultKind

FAULT = Fault(FaultKind.POLICY, "TimeoutError", "no answer", retryable=True)


def test_an_attempt_that_was_lost_with_its_actor_does_not_count():
    it = Collection("c", 1, 1, max_attempts=1, max_losses=5)
    for attempt in range(1, 5):
        assert it.start(0) == attempt
        assert not it.lose(0)
        assert it.offers() == [0]
    assert it.start(0) == 5
    assert it.finish(0, None, "a")
    assert (it.failed, it.retries, it.quarantined) == (0, 4, [])


def test_after_a_loss_all_attempts_are_left_for_faults():
    it = Collection("c", 1, 1, max_attempts=2)
    it.start(0)
    it.lose(0)
    it.start(0)
    assert not it.finish(0, FAULT, "a")
    it.start(0)
    assert it.finish(0, FAULT, "b"), "the second one that counts"


def test_an_episode_that_is_handed_back_starts_again_at_once_however_often():
    it = Collection("c", 1, 1, max_attempts=1, max_losses=1)
    for _ in range(20):
        it.start(0, now=7.0)
        assert not it.hand_back(0)
        assert it.offers(now=7.0) == [0]
    assert it.quarantined == []


def test_a_lost_episode_rests_longer_after_each_loss():
    it = Collection("c", 1, 1)
    for loss, pause in enumerate((1.0, 2.0, 4.0)):
        it.start(0, now=0.0)
        it.lose(0, now=100.0)
        assert it.offers(now=100.0 + pause - 0.01) == []
        assert it.wakes_at(now=100.0) == 100.0 + pause
        assert it.offers(now=100.0 + pause) == [0], loss


@pytest.mark.parametrize("end", ["lose", "hand_back"])
def test_an_episode_of_a_cancelled_collection_that_is_lost_is_done(end):
    it = Collection("c", 1, 1)
    it.start(0)
    it.cancel()
    assert getattr(it, end)(0)
    assert (it.failed, it.quarantined) == (1, [])


@settings(max_examples=40)
@given(
    poison=st.integers(0, 29),
    actors=st.integers(1, 4),
    slots=st.integers(1, 8),
    losses=st.integers(SUSPECT_LOSSES + 2, 12),
    data=st.data(),
)
def test_only_the_task_that_kills_its_actors_is_quarantined(poison, actors, slots, losses, data):
    """The poison task kills its actor before any episode beside it ends."""
    collection, scheduler, numbers = Collection("c", 30, 1, max_losses=losses), Scheduler(), itertools.count()
    for _ in range(actors):
        scheduler.add_actor(f"a{next(numbers)}", slots)
    scheduler.add(collection)
    running: list[Assignment] = []
    while not collection.exhausted:
        while (assignment := scheduler.next()) is not None:
            running.append(assignment)
        killed = {assignment.actor for assignment in running if assignment.episode == poison}
        if not killed:
            ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
            scheduler.finish(ended, None)
        for actor in killed:
            scheduler.remove_actor(actor)
            for lost in [assignment for assignment in running if assignment.actor == actor]:
                running.remove(lost)
                scheduler.lose(lost)
            scheduler.add_actor(f"a{next(numbers)}", slots)
        while collection.take() is not None:
            pass
    assert collection.quarantined == [poison]
    assert collection.failed == 1
