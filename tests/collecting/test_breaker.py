"""A fault that stops all episodes: the collection pauses, keeps its episodes, tries again, and gives up in the end."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.collecting.breaker import EPISODES_IN_A_ROW, Breaker
from rollout_service.collecting.collection import Collection
from rollout_service.collecting.scheduler import Assignment, Scheduler
from rollout_service.errors import Fault, FaultKind

DOWN = Fault(FaultKind.USER_SIMULATOR, "ConnectError", "the endpoint is down.", retryable=True)
BAD_KEY = Fault(FaultKind.USER_SIMULATOR, "AuthenticationError", "bad key.", retryable=False)
BROKEN_TASK = Fault(FaultKind.ENVIRONMENT, "KeyError", "no such record", retryable=False)

Ends = Callable[[float, float], tuple[float, Fault | None]]
"""From the time of an attempt's start, and a random number in [0, 1): how long it takes, and how it ends."""


class Play:
    """Plays a collection on its own clock, as the coordinator does."""

    def __init__(
        self,
        n: int,
        slots: int,
        ends: Ends,
        group_size: int = 1,
        attempts: int = 3,
        give_up=600.0,
        was_answered=lambda _: False,
    ) -> None:
        """
        Args:
            was_answered: whether the endpoint answered an attempt that started then, before it ended.
        """
        self.breaker = Breaker(group_size, give_up)
        self.collection = Collection("c", n // group_size, group_size, max_attempts=attempts, breaker=self.breaker)
        self.scheduler = Scheduler()
        self.scheduler.add_actor("a", slots)
        self.scheduler.add(self.collection)
        self.ends = ends
        self.was_answered = was_answered
        self.now = 0.0
        self.started: list[float] = []
        self.failed: list[int] = []
        """Episodes that were given up."""
        self.running: list[tuple[float, int, Assignment, Fault | None]] = []

    def run(self, chance: Callable[[], float] = lambda: 0.5) -> Play:
        while not self.collection.exhausted and self.breaker.error is None:
            while (assignment := self.scheduler.next(self.now)) is not None:
                seconds, fault = self.ends(self.now, chance())
                self.started.append(self.now)
                heapq.heappush(self.running, (self.now + seconds, len(self.started), assignment, fault))
            wake = self.scheduler.wakes_at(self.now)
            if self.running and self.running[0][0] <= wake:
                self.now, _, assignment, fault = heapq.heappop(self.running)
                answered = self.was_answered(self.collection.state(assignment.episode).started)
                ended = self.scheduler.finish(assignment, fault, None, self.now, was_answered=answered)
                if ended and fault is not None:
                    self.failed.append(assignment.episode)
            else:
                assert wake < math.inf, "nothing runs, and nothing will"
                self.now = wake
            self.collection.take()
        return self


def down_until(end: float, fault: Fault = DOWN) -> Ends:
    return lambda now, _: (0.1, fault) if now < end else (20.0, None)


@pytest.mark.parametrize("fault", [DOWN, BAD_KEY])
@pytest.mark.parametrize("slots", [1, 8])
def test_an_endpoint_that_comes_up_late_costs_no_episode(fault, slots):
    play = Play(40, slots, down_until(60.0, fault)).run()
    assert play.failed == []
    assert sum(at < 60.0 for at in play.started) <= slots + 2 * EPISODES_IN_A_ROW + 8, "it pauses, and tries one"
    assert not play.breaker.is_open


class Outage:
    """An endpoint that is down for a while. It answers an attempt until it goes down."""

    def __init__(self, begin: float, seconds: float) -> None:
        self.begin, self.end = begin, begin + seconds

    def __call__(self, now: float, chance: float) -> tuple[float, Fault | None]:
        length = 1.0 + 30 * chance
        if self.begin <= now < self.end:
            return 0.5 + chance, DOWN
        return (self.begin - now + chance, DOWN) if now < self.begin <= now + length else (length, None)

    def answers(self, started: float) -> bool:
        return not self.begin <= started < self.end


@settings(max_examples=100)
@given(
    begin=st.integers(0, 300),
    seconds=st.integers(1, 59),
    n=st.integers(EPISODES_IN_A_ROW, 60),
    slots=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_an_endpoint_that_is_down_for_a_minute_costs_no_episode_also_not_one_of_the_last(
    begin, seconds, n, slots, seed
):
    outage = Outage(begin, seconds)
    play = Play(n, slots, outage, was_answered=outage.answers).run(random.Random(seed).random)
    assert play.failed == []


def test_the_pauses_grow_and_one_episode_is_tried_after_each():
    play = Play(50, 8, down_until(math.inf), give_up=100.0).run()
    tries = [at for at in play.started if at > 0.1]
    assert [round(b - a, 1) for a, b in itertools.pairwise(tries)] == [2.1, 4.1, 8.1, 16.1, 32.1, 32.1, 32.1]


def test_a_fault_that_lasts_ends_the_collection_with_its_text_and_remedy():
    play = Play(50, 8, down_until(math.inf, BAD_KEY), give_up=100.0).run()
    assert 100.0 <= play.now < 140.0
    assert play.failed == []
    said = str(play.breaker.error)
    assert "service.give_up_seconds: 100" in said
    assert "user_simulator: AuthenticationError: bad key." in said
    assert "user.api_key_var" in said


def test_while_it_pauses_the_collection_says_why_and_until_when():
    breaker = Breaker(1, 600.0)
    assert breaker.told(0.0) is None
    for episode in range(EPISODES_IN_A_ROW):
        assert not breaker.is_open
        breaker.failed(episode, DOWN, started=0.0, now=1.0)
    said = (
        "a fault of kind user_simulator ends every episode (tried again in 1 s, given up after 600 s): ConnectError: "
    )
    assert breaker.told(1.0).startswith(f"{said}the endpoint is down. Check user.model")
    assert "one episode is tried now" in breaker.told(2.0)
    assert breaker.ended_otherwise()
    assert breaker.told(3.0) is None


def test_an_episode_that_outlasts_the_failed_ones_lets_the_others_follow_before_it_ends():
    breaker = Breaker(1, 600.0)
    for episode in range(EPISODES_IN_A_ROW):
        breaker.failed(episode, DOWN, started=0.0, now=10.0)
    assert not breaker.admits(10.9)
    assert breaker.admits(11.0)
    breaker.started(11.0)
    assert not breaker.admits(30.9)
    assert breaker.admits(31.0), "twice as long as the failed ones took"
    breaker.failed(9, DOWN, started=20.0, now=32.0)
    assert not breaker.admits(32.0), "it did not mend"


def test_one_task_that_always_fails_pauses_nothing():
    def ends(now: float, chance: float) -> tuple[float, Fault | None]:
        return 1.0, BAD_KEY

    play = Play(8, 8, ends, group_size=8, attempts=1).run()
    assert sorted(play.failed) == list(range(8)), "all of one group"


def test_a_fault_of_tasks_pauses_nothing():
    play = Play(20, 4, lambda now, _: (1.0, BROKEN_TASK)).run()
    assert sorted(play.failed) == list(range(20))
    assert play.now < 10.0


def test_the_last_few_episodes_are_spared_for_a_minute_while_nothing_answers_them():
    play = Play(40, 4, lambda now, _: (1.0, None if now < 9 else DOWN)).run()
    assert sorted(play.failed) == [36, 37, 38, 39]
    assert 60 < play.now < 100
    assert play.breaker.error is None


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize(("last", "slots"), [(1, 1), (4, 1), (4, 16), (12, 4), (12, 16)])
def test_last_episodes_that_fail_although_the_endpoint_answers_them_end_soon(last, slots, attempts):
    play = Play(40, slots, lambda *_: (1.0, None), attempts=attempts, was_answered=lambda _: True)
    first: list[float] = []

    def ends(now: float, _: float) -> tuple[float, Fault | None]:
        if len(play.started) < 40 - last:
            return 1.0, None
        first.append(now)
        return 1.0, DOWN

    play.ends = ends
    play.run()
    assert len(play.failed) == last
    assert play.breaker.error is None
    assert play.now - first[0] <= 30.0


@pytest.mark.parametrize("slots", [1, 4])
def test_a_few_episodes_that_fail_are_given_up_as_they_were(slots):
    play = Play(4, slots, lambda now, _: (1.0, BAD_KEY)).run()
    assert sorted(play.failed) == [0, 1, 2, 3]


@settings(max_examples=40)
@given(share=st.floats(0, 0.5), slots=st.integers(1, 20), seed=st.integers(0, 99))
def test_where_faults_are_many_but_not_all_every_episode_ends(share, slots, seed):
    def ends(now: float, chance: float) -> tuple[float, Fault | None]:
        return 1.0 + chance, DOWN if chance < share else None

    play = Play(40, slots, ends).run(random.Random(seed).random)
    assert play.breaker.error is None
    assert play.collection.done == 40
    assert len(play.failed) == play.collection.failed
