"""A collection that goes on from an earlier one plays what that one did not, under the same identities."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.continuation import Continuation
from rollout_service.collecting.planning import Planner
from rollout_service.collecting.request import CollectionRequest
from rollout_service.errors import TaskError
from tests.support import episodes
from tests.support.plans import TASKS, place, plan, played


@given(groups=st.integers(1, 12), group_size=st.integers(1, 4), whole=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_not_stored_is_played_once_under_the_same_identity(groups, group_size, whole, data):
    n = None if whole else groups * group_size
    first = plan(n=n, group_size=group_size, seed=5)
    stored = data.draw(st.sets(st.sampled_from(first.drawing.requests)))
    done = [place(request) for request in stored]
    continues = Continuation(first.first_draw, first.collection.collection_id, tuple(done))
    second = plan(n=n, group_size=group_size, seed=5, continues=continues)
    assert second.collection.size == second.collection.waiting == len(first.drawing.requests) - len(stored)
    groups_of_second = played(second)
    found = [request for group in groups_of_second for request in group]
    assert sorted(found, key=place) == sorted(set(first.drawing.requests) - stored, key=place)
    partial = [len(group) < group_size for group in groups_of_second]
    assert partial == sorted(partial, reverse=True), "groups that are stored in part come first"
    assert second.collection.done == second.collection.size
    assert second.collection.waiting == 0


def test_numbering_on_gives_the_tasks_and_seeds_that_one_longer_collection_has():
    both = plan(n=16, group_size=2, seed=5).drawing.requests
    second = plan(n=8, group_size=2, seed=5, continues=Continuation(first_draw=4))
    assert second.first_draw == 4
    assert [(r.task, r.seed) for r in second.drawing.requests] == [(r.task, r.seed) for r in both[8:]]
    assert second.collection.collection_id != both[0].collection_id


def test_a_pass_over_the_whole_set_moves_the_sequence_on_as_draws_do():
    planner = Planner(episodes.settings(tasks__domain="mock"), TASKS)
    whole = planner.plan(CollectionRequest(), version=0)
    after = planner.plan(CollectionRequest(n=3), version=0)
    assert after.first_draw == len(whole.drawing.requests)
    again = plan(n=3, continues=Continuation(after.first_draw))
    assert [(r.task, r.seed) for r in again.drawing.requests] == [(r.task, r.seed) for r in after.drawing.requests]


def test_a_collection_of_which_everything_is_stored_plays_nothing():
    first = plan(n=4, seed=5)
    done = tuple(place(request) for request in first.drawing.requests)
    rest = plan(n=4, seed=5, continues=Continuation(0, first.collection.collection_id, done))
    assert (rest.collection.size, rest.collection.exhausted) == (0, True)


@pytest.mark.parametrize(
    "fields", [{"seed": 6}, {"n": 2}, {"group_size": 1}, {"domain": "retail"}, {"continues": Continuation(1, "c")}]
)
def test_what_is_stored_of_another_collection_is_refused(fields):
    first = plan(n=4, group_size=2, seed=5)
    done = tuple(place(request) for request in first.drawing.requests)
    fields = {"n": 4, "group_size": 2, "seed": 5, "continues": Continuation(0, "c")} | fields
    continues = Continuation(fields["continues"].first_draw, "c", done)
    with pytest.raises(TaskError, match="is stored, but is none of this collection's"):
        plan(**fields | {"continues": continues})


def test_a_half_group_is_not_held_back_by_a_full_buffer():
    collection = Collection("c", 2, 2, max_buffered_groups=1)
    collection.skip([2])
    for episode in (0, 1):
        collection.start(episode)
        collection.finish(episode, None, "a")
    assert collection.offers() == [3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first_draw": -1}, "first_draw is -1"),
        ({"collection_id": ""}, "collection_id is ''"),
        ({"done": [(0, 0)]}, r"done has \(0, 0\)"),
        ({"done": [(0, -1, 3)]}, "sample in done is -1"),
        ({"done": ["012"]}, "done has '012'"),
    ],
)
def test_a_continuation_that_cannot_be_is_refused(fields, message):
    with pytest.raises(TaskError, match=message):
        Continuation(**fields)
    with pytest.raises(TaskError, match="continues is 3"):
        CollectionRequest(continues=3)
