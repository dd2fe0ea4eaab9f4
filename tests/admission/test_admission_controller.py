"""The controller, on figures of the test's own and beside simulated replicas with a prefix cache that evicts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.admission.controller import STALE_SECONDS, Controller
from rollout_service.policy.replicas import CacheFigures, Occupancy
from tests.support.simulated_replicas import Kind, Replica, World

OWN = Kind(shared=1000, opening=4000, answer=100, observation=300, turns=10, think_seconds=0.5)
"""Most of a context is the episode's own."""

KINDS = st.builds(
    Kind,
    shared=st.integers(0, 6000),
    opening=st.integers(100, 5000),
    answer=st.integers(20, 200),
    observation=st.integers(20, 500),
    turns=st.integers(2, 14),
    think_seconds=st.floats(0, 20),
)

FIGURES = st.builds(
    CacheFigures,
    capacity=st.integers(1, 10**7),
    inside=st.integers(0, 500),
    sampling=st.integers(0, 500),
    later_turns=st.integers(0, 10**4),
    recomputed_tokens=st.integers(0, 10**8),
    recompute_seconds=st.floats(0, 1e4),
    latest_turns=st.integers(0, 64),
    context_tokens=st.floats(0, 1e5),
    shared_tokens=st.floats(0, 1e5),
    fixed_share=st.floats(0, 1),
)
OCCUPANCY = st.builds(Occupancy, st.integers(0, 500), st.floats(0, 1), st.floats(0, 1), st.none() | FIGURES) | st.none()


class Played(World):
    """A simulation with a controller of its own, unless it is told otherwise."""

    def __init__(
        self, kind: Kind, slots: int, share: float, *, replicas: int = 1, rounds: int = 4, controlled: bool = True
    ) -> None:
        """
        Args:
            share: part of the slots' episodes whose whole contexts the memory holds.
        """
        self.controller = Controller()
        capacity = int(kind.shared + (share * slots * kind.own_tokens) / replicas)
        made = [Replica(f"r{number}", capacity, kind.shared) for number in range(replicas)]
        super().__init__(kind, slots, made, rounds * slots)
        self.ended = self.controller.ended
        if controlled:
            self.limit = lambda world: self.controller.observe(self.figures(), world.in_flight, world.now)

    def figures(self) -> dict[str, Occupancy]:
        return {replica.name: replica.says() for replica in self.replicas}


def gain(kind: Kind, slots: int, share: float, replicas: int = 1) -> float:
    """Output tokens per second with the controller, as a multiple of those without it."""
    controlled, free = (
        Played(kind, slots, share, replicas=replicas, controlled=controlled).run() for controlled in (True, False)
    )
    return controlled / free


@pytest.mark.parametrize(("slots", "replicas"), [(64, 1), (64, 2)])
def test_with_memory_for_half_of_the_episodes_it_makes_at_least_half_as_many_tokens_again(slots, replicas):
    assert gain(OWN, slots, 0.5, replicas) >= 1.5


@settings(max_examples=12, deadline=None)
@given(KINDS, st.integers(1, 24), st.floats(1.6, 4.0), st.integers(1, 2))
def test_with_ample_memory_there_is_never_a_limit(kind, slots, share, replicas):
    world = Played(kind, slots, share, replicas=replicas, rounds=2)
    world.run()
    assert set(world.limits) == {None}


def test_over_all_kinds_of_episodes_and_memories_it_gains_and_it_costs_little_where_it_does_not_help():
    chance = random.Random(0)
    gains = []
    for _ in range(25):
        kind = Kind(
            chance.randint(0, 6000),
            chance.randint(100, 5000),
            chance.randint(20, 200),
            chance.randint(20, 500),
            chance.randint(2, 14),
            chance.uniform(0, 5),
        )
        gains.append(gain(kind, chance.randint(8, 32), chance.uniform(0.25, 1.2)))
    assert sum(gains) / len(gains) > 1.0
    assert min(gains) > 0.85


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.dictionaries(st.sampled_from("abc"), OCCUPANCY), st.integers(0, 200), st.floats(0, 60))))
def test_the_limit_is_never_below_one_episode_for_each_replica(trace):
    controller, now, replicas = Controller(), 0.0, 0
    for figures, in_flight, passed in trace:
        now += passed
        controller.ended(in_flight * 100)
        limit = controller.observe(figures, in_flight, now)
        if figures and all(each is not None and each.cache is not None for each in figures.values()):
            replicas = len(figures)
        assert limit is None or limit >= max(1, replicas)
        assert controller.limit(now) == limit
        assert controller.limit(now + STALE_SECONDS + 1) is None


def short(turns: int, seconds: float, capacity: int = 100_000) -> Occupancy:
    """Of a replica on which episodes of 10,000 tokens of their own have lost so many seconds in so many turns."""
    return Occupancy(8, 0.9, 0.1, CacheFigures(capacity, 16, 8, turns, turns * 9000, seconds, 64, 10_000.0, 0.0, 0.2))


def limited(replicas: int = 2) -> Controller:
    """It has found that 32 episodes in flight are too many."""
    controller = Controller()
    names = "abcd"[:replicas]
    assert controller.observe(dict.fromkeys(names, short(0, 0.0)), 32, 0.0) is None
    limit = controller.observe(dict.fromkeys(names, short(40, 6.0)), 32, 10.0)
    assert limit == int(0.95 * replicas * 10), "what fits, with a little to spare"
    return controller


def test_evictions_that_cost_time_bring_the_limit_down_to_what_fits():
    controller = limited()
    assert controller.capacity == 200_000
    assert controller.tokens_per_episode == pytest.approx(10_000)


def test_evictions_that_cost_little_time_bring_no_limit():
    controller = Controller()
    controller.observe({"a": short(0, 0.0)}, 32, 0.0)
    assert controller.observe({"a": short(400, 0.5)}, 32, 10.0) is None


def test_prefixes_that_are_missing_while_there_is_room_bring_no_limit():
    controller = Controller()
    controller.observe({"a": short(0, 0.0, 10**6)}, 32, 0.0)
    assert controller.observe({"a": short(400, 6.0, 10**6)}, 32, 10.0) is None, "a third of it is needed"


def test_the_limit_follows_the_replicas_that_there_are():
    controller = limited()
    assert controller.observe({"a": short(80, 6.0)}, 32, 12.0) == 9
    assert controller.observe(dict.fromkeys("abcd", short(80, 6.0)), 32, 14.0) == 38


def test_nothing_is_judged_before_the_episodes_that_are_too_many_have_ended():
    controller = limited()
    for number in range(1, 10):
        assert (
            controller.observe(dict.fromkeys("ab", short(40 + 40 * number, 6.0 + 6 * number)), 30, 10 + 10.0 * number)
            == 19
        )
    more = dict.fromkeys("ab", short(1000, 200.0))
    controller.observe(more, 19, 110.0)
    still = controller.observe(dict.fromkeys("ab", short(1040, 206.0)), 19, 120.0)
    assert still == int(19 * 0.8), "too many still"


def test_the_limit_grows_with_the_episodes_that_end_while_nothing_is_lost():
    controller = limited()
    limits = [19]
    for number in range(1, 9):
        for _ in range(10):
            controller.ended(10_000)
        limit = controller.observe(dict.fromkeys("ab", short(40 + 40 * number, 6.0)), limits[-1], 10.0 + 2 * number)
        assert limit is not None
        limits.append(limit)
    assert limits == sorted(limits)
    assert limits[1] <= 19 * 1.5, "slowly"
    assert limits[-1] > 32


def test_figures_that_do_not_come_hold_nothing_back_for_long():
    controller = limited()
    assert controller.observe({}, 32, 20.0) == 19
    assert controller.observe({"a": short(80, 6.0), "b": None}, 32, 30.0) == 19, "one of them says nothing"
    assert controller.observe({}, 32, 10.0 + STALE_SECONDS + 1) is None
    assert controller.observe(dict.fromkeys("ab", short(80, 12.0)), 32, 100.0) == 19, "they come again"


def test_a_replica_that_is_lost_in_mid_run_and_another_one_that_comes_stop_nothing():
    world = Played(OWN, 64, 0.5, replicas=2, rounds=3)
    made = list(world.replicas)

    def at(world: World) -> None:
        world.replicas = made if world.now < 60 else made[:1] if world.now < 120 else [made[0], extra]

    extra = Replica("new", made[0].capacity, OWN.shared)
    world.at = at
    world.run()
    assert world.now > 120
    assert not world.in_flight
    assert all(limit is None or limit >= 1 for limit in world.limits)


def test_a_controller_whose_figures_stop_lets_all_episodes_start():
    world = Played(OWN, 64, 0.5, rounds=3)
    world.limit = lambda world: world_limit()

    def world_limit() -> int | None:
        return world.controller.observe(world.figures() if world.now < 60 else {}, world.in_flight, world.now)

    world.run()
    assert world.limits[-1] is None
    assert {limit is None for limit in world.limits} == {True, False}
