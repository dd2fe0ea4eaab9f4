"""The scheduler's invariants: each episode is done exactly once, each group handed out once, whatever fails."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.episode_state import Handout, Kept
from rollout_service.collecting.scheduler import Scheduler
from rollout_service.errors import Fault, FaultKind

FAULT = Fault(FaultKind.SERVICE, "RayActorError", "the actor died", retryable=True)
HOPELESS = Fault(FaultKind.USER_SIMULATOR, "AuthenticationError", "bad key", retryable=False)


def scheduler_with(actors: dict[str, int], *collections: Collection) -> Scheduler:
    scheduler = Scheduler()
    for name, slots in actors.items():
        scheduler.add_actor(name, slots)
    for collection in collections:
        scheduler.add(collection)
    return scheduler


@given(
    groups=st.integers(1, 6),
    group_size=st.integers(1, 4),
    attempts=st.integers(1, 3),
    slots=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_every_episode_is_done_exactly_once_and_every_group_handed_out_once(groups, group_size, attempts, slots, data):
    collection = Collection("c", groups, group_size, max_attempts=attempts, max_buffered_groups=2)
    scheduler = scheduler_with({f"a{i}": n for i, n in enumerate(slots)}, collection)
    running, done, taken, spawned = [], [], [], len(slots)
    while not collection.exhausted:
        while (assignment := scheduler.next()) is not None:
            assert assignment.attempt <= attempts
            running.append(assignment)
            for actor in scheduler.actors:
                assert sum(a.actor == actor for a in running) <= 3
        assert len({a.episode for a in running}) == len(running), "an episode runs twice at a time"
        event = data.draw(st.sampled_from(["finish", "fault", "hopeless", "kill", "take"]))
        if event == "take" or not running:
            if (handout := collection.take()) is not None:
                taken.append(handout.group)
        elif event == "kill":
            victim = running[0].actor
            scheduler.remove_actor(victim)
            for assignment in [a for a in running if a.actor == victim]:
                running.remove(assignment)
                if scheduler.finish(assignment, FAULT):
                    done.append(assignment.episode)
            scheduler.add_actor(f"a{spawned}", 2)
            spawned += 1
        else:
            assignment = running.pop(data.draw(st.integers(0, len(running) - 1)))
            if scheduler.finish(assignment, {"finish": None, "fault": FAULT, "hopeless": HOPELESS}[event]):
                done.append(assignment.episode)
    assert sorted(done) == list(range(groups * group_size))
    assert sorted(taken) == list(range(groups))
    assert scheduler.running == 0
    assert collection.done == groups * group_size


def test_a_retryable_fault_is_tried_again_on_another_actor_under_the_next_attempt():
    scheduler = scheduler_with({"a": 1, "b": 1}, Collection("c", 1, 1))
    first = scheduler.next()
    assert not scheduler.finish(first, FAULT)
    second = scheduler.next()
    assert (second.episode, second.attempt) == (first.episode, 2)
    assert second.actor != first.actor


def test_a_repeated_episode_waits_for_another_actor_rather_than_return_to_the_one_where_it_failed():
    scheduler = scheduler_with({"a": 1, "b": 1}, Collection("c", 2, 1))
    first, second = scheduler.next(), scheduler.next()
    assert not scheduler.finish(first, FAULT)
    assert scheduler.next() is None
    scheduler.finish(second, None)
    assert scheduler.next().actor == second.actor


def test_a_repeated_episode_that_waits_does_not_hold_back_the_others():
    scheduler = scheduler_with({"a": 1, "b": 1}, Collection("c", 3, 1))
    first, second = scheduler.next(), scheduler.next()
    assert not scheduler.finish(first, FAULT)
    third = scheduler.next()
    assert (third.episode, third.actor) == (2, first.actor)
    scheduler.finish(second, None)
    again = scheduler.next()
    assert (again.episode, again.attempt, again.actor) == (first.episode, 2, second.actor)


def test_a_repeated_episode_returns_to_the_only_actor_there_is():
    scheduler = scheduler_with({"a": 1}, Collection("c", 1, 1))
    scheduler.finish(scheduler.next(), FAULT)
    assert scheduler.next().actor == "a"


def test_a_fault_that_no_retry_can_mend_ends_the_episode_at_once():
    collection = Collection("c", 1, 1, max_attempts=3)
    scheduler = scheduler_with({"a": 1}, collection)
    assert scheduler.finish(scheduler.next(), HOPELESS)
    assert collection.failed == 1
    assert collection.take().group == 0


def test_the_last_attempt_s_fault_is_the_result():
    collection = Collection("c", 1, 1, max_attempts=2)
    scheduler = scheduler_with({"a": 1}, collection)
    assert not scheduler.finish(scheduler.next(), FAULT)
    assert scheduler.finish(scheduler.next(), FAULT)
    assert (collection.failed, collection.retries) == (1, 1)


def test_no_new_group_starts_while_too_many_finished_ones_wait_but_open_groups_go_on():
    collection = Collection("c", 3, 2, max_buffered_groups=1)
    scheduler = scheduler_with({"a": 3}, collection)
    started = [scheduler.next() for _ in range(3)]
    assert [a.episode for a in started] == [0, 1, 2]
    scheduler.finish(started[0], None)
    scheduler.finish(started[1], None)
    fourth = scheduler.next()
    assert fourth.episode == 3, "the second group was open already"
    assert scheduler.next() is None, "the third group must wait: one finished group was not taken"
    assert collection.take().group == 0
    assert scheduler.next().episode == 4


def test_groups_come_in_the_order_in_which_they_complete():
    collection = Collection("c", 2, 1)
    scheduler = scheduler_with({"a": 2}, collection)
    first, second = scheduler.next(), scheduler.next()
    scheduler.finish(second, None)
    scheduler.finish(first, None)
    assert [collection.take().group, collection.take().group, collection.take()] == [1, 0, None]


def test_collections_share_the_slots_by_turns():
    scheduler = scheduler_with({"a": 4}, Collection("c", 4, 1), Collection("d", 4, 1))
    assert [scheduler.next().collection_id for _ in range(4)] == ["c", "d", "c", "d"]


def test_the_least_loaded_actor_gets_the_next_episode():
    scheduler = scheduler_with({"small": 1, "large": 3}, Collection("c", 4, 1))
    assert sorted(scheduler.next().actor for _ in range(4)) == ["large", "large", "large", "small"]
    assert scheduler.next() is None


def test_a_cancelled_collection_starts_nothing_and_is_exhausted_when_its_finished_groups_are_taken():
    collection = Collection("c", 3, 1)
    scheduler = scheduler_with({"a": 1}, collection)
    first = scheduler.next()
    collection.cancel()
    assert scheduler.next() is None
    assert scheduler.finish(first, FAULT), "no retry after a cancellation"
    assert not collection.exhausted
    assert collection.take().group == 0
    assert collection.exhausted
    assert collection.waiting == 0


def test_an_episode_of_a_dropped_collection_ends_without_consequence():
    scheduler = scheduler_with({"a": 1}, Collection("c", 1, 1))
    assignment = scheduler.next()
    scheduler.drop("c")
    assert not scheduler.finish(assignment, None)
    assert scheduler.running == 0


@given(parks=st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_parked_collection_starts_nothing_and_keeps_what_ends(parks):
    collection, other = Collection("c", 6, 1), Collection("other", 40, 1)
    scheduler = scheduler_with({"a": 2}, collection, other)
    running, done = [], []
    is_parked = False
    for now, parks_it in enumerate(parks):
        scheduler.park("c") if parks_it else scheduler.add(collection, now)
        is_parked = parks_it
        while (assignment := scheduler.next(now)) is not None:
            assert not (is_parked and assignment.collection is collection)
            running.append(assignment)
        ended = running.pop(0)
        assert scheduler.finish(ended, None, now=now)
        done += [ended.episode] if ended.collection is collection else []
    assert is_parked or scheduler.demand >= collection.startable
    scheduler.add(collection)
    scheduler.drop("other")
    while running or (assignment := scheduler.next()) is not None:
        running += [] if running else [assignment]
        ended = running.pop(0)
        done += [ended.episode] if scheduler.finish(ended, None) else []
    assert sorted(done) == list(range(6))


def test_an_episode_of_a_collection_that_is_continued_ends_without_consequence_for_the_one_that_goes_on():
    scheduler = scheduler_with({"a": 5}, Collection("c", 4, 1))
    old = [scheduler.next() for _ in range(4)]
    scheduler.drop("c")
    again = Collection("c", 1, 1)
    scheduler.add(again)
    new = scheduler.next()
    assert (new.collection_id, new.episode) == (old[0].collection_id, old[0].episode)
    assert not any(scheduler.finish(assignment, FAULT) for assignment in old)
    assert scheduler.running == 1
    assert not again.state(0).done
    assert scheduler.finish(new, None)
    assert scheduler.running == 0


def test_finishing_an_episode_twice_is_an_error():
    collection = Collection("c", 1, 1)
    collection.start(collection.offers()[0])
    collection.finish(0, None, "a")
    with pytest.raises(ValueError, match="done already"):
        collection.finish(0, None, "a")


def test_a_restored_collection_plays_what_is_unfinished_and_hands_out_again_what_was_not_acknowledged():
    collection = Collection("c", 5, 2)
    kept = {episode: Kept(1, 0, failed=False) for episode in (2, 3, 4, 5, 6)}
    collection.restore(kept, {0: (), 1: (3,)}, [0])
    assert [collection.take(), collection.take(), collection.take()] == [Handout(1, (3,)), Handout(2), None]
    started = []
    while offers := collection.offers():
        started.append(offers[0])
        assert collection.start(offers[0]) == 1, "the attempt that was lost does not count"
        collection.finish(offers[0], None, "actor")
    assert started == [7, 8, 9]
    assert [collection.take(), collection.take()] == [Handout(3), Handout(4)]
    assert collection.exhausted


def test_an_actor_that_leaves_is_forgotten_when_its_episodes_have_ended():
    scheduler = Scheduler()
    scheduler.add(Collection("c", 1, 1))
    for name in ("idle", "busy"):
        scheduler.add_actor(name, 1)
    running = scheduler.next()
    for name in ("idle", "busy"):
        scheduler.remove_actor(name)
    assert list(scheduler._running) == [running.actor]
    scheduler.finish(running, None)
    assert not scheduler._running, "a service that lives long starts many actors"


def test_no_more_episodes_run_than_the_limit_allows_and_those_that_run_go_on():
    scheduler = scheduler_with({"a": 2, "b": 2}, Collection("c", 8, 1))
    running = [scheduler.next() for _ in range(3)]
    scheduler.limit = 2
    assert scheduler.is_held
    assert scheduler.next() is None
    for assignment in running[:2]:
        assert assignment is not None
        scheduler.finish(assignment, None)
    assert scheduler.next() is not None
    assert scheduler.next() is None
    scheduler.limit = None
    assert not scheduler.is_held
    assert scheduler.next() is not None
    scheduler.limit = 4
    assert scheduler.next() is not None
    assert not scheduler.is_held, "no slot is free either"
    assert scheduler.next() is None


def test_no_actor_is_wanted_for_episodes_that_the_limit_holds_back():
    scheduler = scheduler_with({"a": 2}, Collection("c", 8, 1))
    assert scheduler.demand == 8
    scheduler.limit = 5
    assert scheduler.demand == 5
    scheduler.next(), scheduler.next()
    assert scheduler.demand == 5
    scheduler.limit = 1
    assert scheduler.demand == 2, "those that run keep theirs"
    scheduler.limit = 100
    assert scheduler.demand == 8
