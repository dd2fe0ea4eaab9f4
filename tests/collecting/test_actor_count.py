"""How many environment actors there should be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout_service.collecting.actor_count import ActorCount


def test_it_grows_at_once_with_the_episodes_as_far_as_cpus_are_free():
    it = ActorCount(1, 8, slots=16, idle_seconds=60.0)
    assert it.update(0.0, demand=16, free_cpus=9.0) == 1
    assert it.update(1.0, demand=17, free_cpus=9.0) == 2
    assert it.update(2.0, demand=1000, free_cpus=3.9) == 5
    assert it.update(3.0, demand=1000, free_cpus=0.0) == 5
    assert it.update(4.0, demand=1000, free_cpus=9.0) == 8, "no more than the most"


def test_it_shrinks_when_fewer_were_enough_for_a_while_to_what_was_needed_meanwhile():
    it = ActorCount(1, 8, slots=16, idle_seconds=60.0)
    it.update(0.0, demand=128, free_cpus=9.0)
    assert it.update(10.0, demand=16, free_cpus=0.0) == 8
    assert it.update(40.0, demand=40, free_cpus=0.0) == 8
    assert it.update(69.0, demand=0, free_cpus=0.0) == 8
    assert it.update(70.0, demand=0, free_cpus=0.0) == 3
    assert it.update(71.0, demand=0, free_cpus=0.0) == 3
    assert it.update(131.0, demand=0, free_cpus=0.0) == 1


def test_a_short_lull_takes_no_actor_away():
    it = ActorCount(1, 4, slots=16, idle_seconds=60.0)
    it.update(0.0, demand=64, free_cpus=9.0)
    for now in range(1, 300):
        assert it.update(now, demand=64 if now % 50 == 0 else 0, free_cpus=0.0) == 4


@given(
    least=st.integers(1, 4),
    more=st.integers(0, 8),
    slots=st.integers(1, 32),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 500), st.floats(-2, 10)), max_size=30),
)
def test_it_stays_within_its_bounds_and_grows_no_further_than_cpus_are_free(least, more, slots, steps):
    it, now = ActorCount(least, least + more, slots, 20.0), 0.0
    for seconds, demand, free in steps:
        before, now = it.count, now + seconds
        count = it.update(now, demand, free)
        assert least <= count <= least + more
        assert count - before <= max(0, int(free))
