"""How long an episode waits for its next attempt."""

from __future__ import annotations

from rollout_service.collecting.retry import seconds_before_retry


def test_the_wait_doubles_with_each_attempt_up_to_half_a_minute():
    assert [seconds_before_retry(attempt) for attempt in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 32, 32]
