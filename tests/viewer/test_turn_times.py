"""What each turn waited for."""

from __future__ import annotations

import pytest

from rollout_service.record.trajectory import Timing
from rollout_service.viewer.turn_times import turn_times
from tests.support.trajectories import make_segment, make_trajectory

ROLES = ["user", "assistant", "tool", "assistant", "user"]


def episode(seconds: list[float], timing: Timing):
    """Two turns of 0.5 s each, in messages that were made at these seconds."""
    segment = make_segment()
    segment.turns[0].message_index, segment.turns[1].message_index = 1, 3
    segment.turns[0].queue_seconds = 0.125
    messages = [
        {"role": role, "timestamp": f"2026-01-31T10:00:{at:09.6f}"} for role, at in zip(ROLES, seconds, strict=True)
    ]
    return make_trajectory(segments=[segment], messages=messages, timing=timing)


def test_a_turn_has_its_queue_and_policy_seconds_and_what_followed_its_message():
    timing = Timing(0.25, 1.1, 2.5, 0.75, 0.125)
    times = turn_times(episode([1.0, 1.5, 1.75, 2.25, 4.25], timing))
    assert times["turns"] == [
        {"queue": 0.125, "policy": 0.375, "user": 0.0, "environment": pytest.approx(0.25)},
        {"queue": None, "policy": 0.5, "user": pytest.approx(2.0), "environment": 0.0},
    ]
    assert times["rest"] == pytest.approx(
        {"queue": 0.25, "evaluation": 0.125, "policy": 0.1, "user": 0.5, "environment": 0.5}
    )


@pytest.mark.parametrize(
    "seconds", [[1.0, 1.5, 1.25, 2.25, 4.25], [1.0, 1.5, 1.75, 2.25, 59.0]], ids=["backwards", "more than recorded"]
)
def test_timestamps_that_do_not_fit_the_record_place_nothing(seconds):
    times = turn_times(episode(seconds, Timing(0.0, 1.0, 2.0, 0.75, 0.125)))
    assert [turn["user"] for turn in times["turns"]] == [None, None]
    assert times["rest"]["user"] == 2.0
    assert [turn["policy"] for turn in times["turns"]] == [0.375, 0.5]


def test_messages_without_timestamps_place_nothing():
    times = turn_times(make_trajectory())
    assert times["turns"] == [{"queue": None, "policy": 0.5, "user": None, "environment": None}] * 2
    assert times["rest"] == {"queue": 0.5, "evaluation": 0.0, "policy": 0.0, "user": 2.0, "environment": 0.0}
