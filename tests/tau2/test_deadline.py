"""Waiting for a future tells its own errors from the end of the time, and an episode that is too old ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.collecting.staleness import Staleness
from rollout_service.errors import EpisodeEnd
from rollout_service.tau2.deadline import Deadline


def future(error: Exception | None = None, result: Any = None) -> concurrent.futures.Future[Any]:
    made: concurrent.futures.Future[Any] = concurrent.futures.Future()
    if error is not None:
        made.set_exception(error)
    elif result is not None:
        made.set_result(result)
    return made


def test_the_result_or_the_futures_own_error_is_passed_on() -> None:
    assert Deadline(60.0).result(future(result=7), 60.0) == 7
    own = TimeoutError("the future's own")
    with pytest.raises(TimeoutError) as raised:
        Deadline(60.0).result(future(own), 60.0)
    assert raised.value is own


def test_a_future_that_does_not_come_is_cancelled_at_the_limit_and_at_the_end_of_the_episode() -> None:
    waiting = future()
    with pytest.raises(TimeoutError, match="no answer in"):
        Deadline(60.0).result(waiting, 0.01)
    assert waiting.cancelled()
    with pytest.raises(EpisodeEnd):
        Deadline(0.01).result(future(), 60.0)
    ended = Deadline(60.0)
    ended.cancelled.set()
    with pytest.raises(EpisodeEnd):
        ended.result(future(), 60.0)


@given(
    limit=st.builds(Staleness, maximum=st.sampled_from([None, 0, 1, 2]), drop=st.booleans()),
    steps=st.lists(st.one_of(st.tuples(st.just("turn"), st.integers(0, 2)), st.tuples(st.just("update"), st.just(1)))),
)
@settings(max_examples=50, deadline=None)
def test_an_episode_is_ended_exactly_when_it_can_no_longer_be_in_time(limit, steps) -> None:
    """Whatever comes first: the update that makes a turn's weights too old, or the end of that turn."""
    clock, version, oldest = Deadline(60.0), 0, None
    for what, number in steps:
        if what == "update":
            version += number
            clock.require(limit.min_version(version) or 0)
        else:
            oldest = max(0, version - number) if oldest is None else min(oldest, max(0, version - number))
            with contextlib.suppress(EpisodeEnd):
                clock.sampled(oldest)
        assert clock.cancelled.is_set() == (limit.drop and limit.late(oldest, version))


def test_a_turn_that_ends_too_old_is_the_episode_s_last_one() -> None:
    clock = Deadline(60.0)
    clock.sampled(3)
    clock.require(4)
    with pytest.raises(EpisodeEnd, match="cancelled"):
        clock.sampled(3)
