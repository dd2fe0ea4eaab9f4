"""What episodes cost, and what more of them will."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.record.cost import Cost, estimate


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 9.0)), max_size=8))
def test_an_unknown_cost_is_never_taken_for_nothing(costs: list[float | None]) -> None:
    cost = Cost()
    for each in costs:
        cost.add(each)
    known = [each for each in costs if each is not None]
    assert cost.usd == (None if None in costs else pytest.approx(sum(known)))
    assert cost.per_episode == (pytest.approx(sum(known) / len(known)) if known else None)
    assert (cost.episodes, cost.unknown) == (len(costs), len(costs) - len(known))
    assert ("not known" in str(cost)) == (None in costs)


def test_the_interval_of_an_estimate_holds_the_sum_in_19_of_20_cases() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(400):
        seen = [rng.uniform(0.0, 0.02) for _ in range(20)]
        low, high = estimate(seen, 64).interval or (0.0, 0.0)
        held += low <= sum(rng.uniform(0.0, 0.02) for _ in range(64)) <= high
    assert 0.92 <= held / 400 <= 0.97


def test_one_episode_says_nothing_about_the_spread() -> None:
    found = estimate([0.5], 10)
    assert (found.usd, found.interval) == (5.0, None)
    assert estimate([0.5, 0.5], 10).interval == (5.0, 5.0)
