"""How often a caller may ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.gateway.rate import RateLimit


@given(
    st.lists(st.floats(0, 3), max_size=60),
    st.sampled_from([0.5, 1.0, 7.0]),
    st.integers(1, 10),
)
def test_no_span_of_time_lets_more_through_than_the_burst_and_the_rate(pauses, rate, burst):
    now = 0.0
    limit = RateLimit(rate, burst, lambda: now)
    passed: list[float] = []
    for pause in pauses:
        now += pause
        wait = limit.wait("a")
        if wait == 0.0:
            passed.append(now)
        else:
            before, now = now, now + wait + 1e-6
            assert limit.wait("a") == 0.0, "whoever waits as long as told is let through"
            passed.append(now)
            assert before < now
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - passed[first]) + 1e-3


def test_callers_have_a_limit_each_and_memory_stays_bounded(monkeypatch):
    monkeypatch.setattr("rollout_service.gateway.rate._MOST_CALLERS", 3)
    limit = RateLimit(1.0, 1, lambda: 0.0)
    assert [limit.wait("a"), limit.wait("b")] == [0.0, 0.0]
    assert limit.wait("a") == pytest.approx(1.0)
    for name in "cdefgh":
        assert limit.wait(name) == 0.0
    assert len(limit._free_at) == 3
