"""Schedules of faults are data: the same for the same seed, and whole after JSON."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.schedule import BEHAVIOURS, KINDS, TARGETS, Schedule, make


@settings(max_examples=50)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10_000), groups=st.integers(5, 250))
def test_a_schedule_follows_from_its_seed_and_survives_json(kind, seed, groups):
    schedule = make(kind, seed, 2 * groups)
    assert schedule == make(kind, seed, 2 * groups)
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert schedule.faults
    for fault in schedule.faults:
        assert 0 <= fault.after <= schedule.episodes * 0.8, "it comes while the collection runs"
        assert (fault.target in TARGETS) is (fault.how in ("KILL", "STOP"))
        assert fault.target in TARGETS or (fault.how in BEHAVIOURS and (fault.requests > 0 or fault.seconds))
    assert (schedule.calm.faults, schedule.calm.noise, schedule.calm.selection) == ((), 0.0, schedule.selection)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "storm"])
def test_seeds_make_different_schedules(kind):
    assert len({make(kind, seed).faults for seed in range(20)}) > 5
