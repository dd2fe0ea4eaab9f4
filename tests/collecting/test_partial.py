"""Partial groups: what is data, what is withheld, and that nothing is lost."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.episode_state import Kept
from rollout_service.collecting.gathering import gathered
from rollout_service.collecting.partial import fewest, too_few
from rollout_service.collecting.request import CollectionRequest
from rollout_service.collecting.staleness import Staleness
from rollout_service.errors import Fault, FaultKind, TaskError
from rollout_service.record.batch import IncompleteCollection, TrajectoryBatch
from rollout_service.record.trajectory import Outcome, Trajectory
from tests.support.trajectories import make_member

FAULT = Fault(FaultKind.SERVICE, "RayActorError", "the actor died", retryable=True)

ENDS = st.sampled_from(["scored", "scored", "unscored", "fault", "lost", "cut"])


def end(it: Collection, episode: int, how: str) -> bool:
    """End an attempt. Returns whether it is the episode's result."""
    if how == "lost":
        return it.lose(episode)
    if how == "cut":
        return it.cut(episode)
    return it.finish(episode, FAULT if how == "fault" else None, "a", scored=how == "scored")


@given(groups=st.integers(1, 4), size=st.integers(1, 4), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_group_below_the_least_is_withheld_and_every_group_is_handed_out_once(groups, size, data):
    least = data.draw(st.integers(0, size))
    it = Collection("c", groups, size, max_attempts=1, max_losses=2, min_group_size=least)
    scored: dict[int, bool] = {}
    handed_out = []
    while not it.exhausted:
        for episode in it.offers()[:1]:
            it.start(episode)
            how = data.draw(ENDS)
            if end(it, episode, how):
                scored[episode] = how == "scored"
        if data.draw(st.booleans()) or not it.offers():
            while (handout := it.take()) is not None:
                handed_out.append(handout.group)
                there = sum(scored[episode] for episode in range(handout.group * size, (handout.group + 1) * size))
                assert bool(it.withheld(handout.group)) == (there < least)
    assert sorted(handed_out) == list(range(groups))
    assert it.shelf.withheld == sum(bool(it.withheld(group)) for group in range(groups))
    assert it.shelf.taken == groups - it.shelf.withheld, "the trainer takes those that are data"


def test_a_group_that_is_no_data_does_not_hold_back_the_next_one():
    it = Collection("c", 3, 1, max_attempts=1, min_group_size=1, staleness=Staleness(0, groups_per_update=1))
    for episode, fault in enumerate((FAULT, None)):
        assert it.offers() == [episode], "what was withheld is none of the groups that the trainer takes"
        it.start(episode)
        assert it.finish(episode, fault, "a")
        it.take()
    assert it.offers() == []


def test_what_is_too_old_in_every_attempt_has_no_score():
    it = Collection("c", 1, 2, max_attempts=1, min_group_size=2, staleness=Staleness(0))
    it.updated(1)
    for episode, version in enumerate((0, 1)):
        it.start(episode)
        assert it.finish(episode, None, "a", (version, version))
    it.take()
    assert it.withheld(0) == "1 of 2 trajectories have a score, fewer than min_group_size, which is 2"


def test_a_collection_that_goes_on_after_its_process_died_withholds_the_same_groups():
    it = Collection("c", 4, 2, min_group_size=2)
    it.skip([6])
    kept = {episode: Kept(1, 0, failed=episode == 1, scored=episode not in (1, 2)) for episode in (0, 1, 2, 3, 4, 5, 7)}
    it.restore(kept, {2: (5,)}, [])
    groups = [it.take().group for _ in range(4)]
    assert {group: bool(it.withheld(group)) for group in groups} == {0: True, 1: True, 2: True, 3: False}


class Stream:
    """Gives a group and withholds another one."""

    takes_partial = True
    dropped = 0

    def __init__(self, given: list[Trajectory], withheld: list[Trajectory]) -> None:
        self.episodes = len(given) + len(withheld)
        self._groups = given, withheld

    async def aopen(self) -> None: ...

    async def __aiter__(self) -> AsyncIterator[list[Trajectory]]:
        given, withheld = self._groups
        yield given
        if withheld:
            self.withheld(withheld, "too few")


def members(*rewards: float | None) -> list[Trajectory]:
    aborted = {"outcome": Outcome.ABORTED, "fault": FAULT, "segments": []}
    group = [make_member(0, sample) for sample in range(len(rewards))]
    return [
        dataclasses.replace(trajectory, reward=reward, **aborted if reward is None else {})
        for trajectory, reward in zip(group, rewards, strict=True)
    ]


async def test_a_batch_has_partial_groups_as_they_were_asked_for_and_what_is_withheld_is_told_apart():
    whole: Any = Stream(members(1.0, None, 0.0), [])
    assert [t.reward for t in await gathered(whole, progress=False)] == [1.0, None, 0.0]
    short: Any = Stream(members(1.0, None, 0.0), members(1.0, None))
    with pytest.raises(IncompleteCollection, match=r"2 of 5 episodes failed.*1 of 5 are in groups with too few") as it:
        await gathered(short, progress=False)
    found = [[t.reward for t in part] for part in (it.value.batch, it.value.failures, it.value.withheld)]
    assert (found, it.value.missing) == ([[1.0, 0.0], [None, None], [1.0]], 0)
    assert pickle.loads(pickle.dumps(it.value)).withheld[0].reward == 1.0


@pytest.mark.parametrize(
    ("asked", "of_service", "found"), [(None, "any", 0), (None, 3, 3), (None, 9, 4), (2, 9, 2), ("any", 3, 0)]
)
def test_a_collection_has_its_own_least_or_the_service_s_and_a_smaller_group_must_be_whole(asked, of_service, found):
    assert fewest(asked, of_service, 4) == found


@pytest.mark.parametrize(
    ("least", "says"),
    [
        (5, r"min_group_size is 5, and a group has only 4 episodes.*Give at most group_size, which is 4"),
        (0, r"min_group_size is 0.*at least 1"),
        ("all", "min_group_size is 'all'"),
        (True, "min_group_size is True"),
    ],
)
def test_a_least_that_no_group_can_have_is_refused(least, says):
    with pytest.raises(TaskError, match=says):
        CollectionRequest(n=8, group_size=4, min_group_size=least)


@given(rewards=st.lists(st.none() | st.floats(0, 1, width=32), min_size=1, max_size=6), scale=st.booleans())
@settings(max_examples=40, deadline=None)
def test_advantages_of_a_partial_group_are_those_of_the_group_of_the_members_that_are_there(rewards, scale):
    group = [dataclasses.replace(make_member(0, sample), reward=reward) for sample, reward in enumerate(rewards)]
    there = [trajectory for trajectory in group if trajectory.is_scored]
    partial = TrajectoryBatch(group).advantages(scale=scale)
    alone = TrajectoryBatch(there).advantages(scale=scale)
    is_there = np.array([trajectory.is_scored for trajectory in group])
    np.testing.assert_array_equal(partial[is_there], alone)
    assert np.isnan(partial[~is_there]).all(), "not 0, which would be a guess"
    assert bool(too_few(len(there), len(group), len(group))) == (len(there) < len(group))
