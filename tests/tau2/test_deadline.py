"""Waiting for a future tells its own errors from the end of the time."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import pytest

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
