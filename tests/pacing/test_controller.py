"""The controller, driven by a clock of the test's own and by a simulated endpoint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.pacing.advice import Advice, Budget
from rollout_service.pacing.controller import FIRST_LIMIT, Controller, Result
from tests.support.simulated_endpoint import Endpoint, simulate

ADVICE = st.builds(
    Advice,
    st.none() | st.floats(0, 1e6),
    st.lists(
        st.builds(Budget, st.sampled_from(["requests", "tokens"]), st.integers(0, 10**6), st.none(), st.floats(0, 1e5))
    ).map(tuple),
)
RESULTS = st.builds(
    Result, st.sampled_from(["answered", "refused", "failed"]), st.floats(0, 100), ADVICE, st.integers(0, 10**5)
)
EVENTS = st.lists(st.tuples(RESULTS, st.integers(1, 100), st.floats(0, 10)), max_size=60)


@settings(max_examples=50, deadline=None)
@given(EVENTS, st.integers(1, 80))
def test_the_limit_is_never_below_one_and_never_above_the_bound(events, bound):
    controller, now = Controller(bound), 0.0
    for result, in_flight, passed in events:
        now += passed
        controller.started(1, now)
        controller.ended(result, in_flight, now)
        assert 1 <= controller.limit <= bound


@settings(max_examples=50, deadline=None)
@given(EVENTS)
def test_no_wait_is_longer_than_the_longest_one(events):
    controller, now = Controller(16, longest_wait=30.0), 0.0
    for result, in_flight, passed in events:
        now += passed
        controller.started(1, now)
        controller.ended(result, in_flight, now)
        assert 0 <= controller.wait(now) <= 30.001
        later = now + controller.wait(now) + controller.refills_in(now) + 1e-6
        left = controller.startable(later)
        assert controller.refills_in(now) <= 30.001
        assert left is None or left >= 0


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.booleans())
def test_it_converges_to_a_limit_on_the_number_in_flight(places, says_when):
    endpoint = Endpoint(places=places, says_when=says_when)
    run = simulate(Controller(64), endpoint, 120.0)
    assert run.rate(20, 120) >= 0.9 * places / endpoint.latency
    assert max(limit for at, limit in run.limits if at > 20) <= 2 * places


@settings(max_examples=10, deadline=None)
@given(st.integers(5, 200), st.booleans(), st.booleans())
def test_it_uses_a_limit_of_requests_per_window_whole(quota, says_when, says_what_is_left):
    endpoint = Endpoint(quota=quota, says_when=says_when or not says_what_is_left, says_what_is_left=says_what_is_left)
    run = simulate(Controller(256), endpoint, 126.0)
    assert run.rate(6, 126) >= 0.9 * quota / 6
    assert not (says_what_is_left and run.refused), "the headers say when to stop"


@pytest.mark.parametrize("says_what_is_left", [False, True])
def test_it_uses_a_limit_of_tokens_per_window_whole(says_what_is_left):
    endpoint = Endpoint(token_quota=6000, tokens=100, says_what_is_left=says_what_is_left)
    run = simulate(Controller(256), endpoint, 126.0)
    assert run.rate(6, 126) >= 0.9 * 10


@settings(max_examples=10, deadline=None)
@given(st.floats(1, 120), st.integers(1, 40))
def test_it_recovers_after_an_outage(seconds, places):
    endpoint = Endpoint(places=places, is_out=lambda now: 50 <= now < 50 + seconds)
    run = simulate(Controller(64), endpoint, 70 + seconds + 100)
    assert run.rate(70 + seconds, 170 + seconds) >= 0.9 * places / endpoint.latency
    during = [at for at in run.refused if 51 <= at < 50 + seconds]
    assert len(during) <= 10 + seconds, "an endpoint that is out is not asked all the time"
    after = next(at for at in run.answered if at >= 50 + seconds + endpoint.latency)
    assert after <= 50 + seconds + endpoint.latency + 1.1, "its end is noticed within a second"


@pytest.mark.parametrize("begins", [50.0, 50.5])
def test_after_an_outage_of_a_minute_an_endpoint_with_slow_answers_is_soon_used_whole(begins):
    endpoint = Endpoint(latency=3.0, places=16, is_out=lambda now: begins <= now < begins + 60)
    run = simulate(Controller(256, notice_seconds=0.3), endpoint, begins + 60 + 57, demand=64)
    assert run.rate(begins + 60 + 9, begins + 60 + 57) >= 0.96 * 16 / 3, "of what starts from 6 s on"


def test_it_finds_a_limit_that_was_raised():
    endpoint = Endpoint(places=4)
    controller = Controller(64)
    simulate(controller, endpoint, 60.0)
    endpoint.places, endpoint.in_flight, endpoint.begun = 32, 0, 0.0
    later = Controller(64)
    later.__dict__.update(controller.__dict__ | {"_cut_at": 0.0, "_paused_until": 0.0})
    run = simulate(later, endpoint, 120.0)
    assert run.rate(60, 120) >= 0.9 * 64


def test_it_doubles_each_round_trip_while_all_is_answered():
    controller = Controller(64)
    for _ in range(FIRST_LIMIT):
        controller.ended(Result("answered", 0.5), controller.limit, 0.5)
    assert controller.limit == 2 * FIRST_LIMIT


def test_a_limit_that_is_not_used_does_not_grow():
    controller = Controller(64)
    for _ in range(100):
        controller.ended(Result("answered", 0.5), 1, 0.5)
    assert controller.limit == FIRST_LIMIT


@pytest.mark.parametrize("kind", ["refused", "failed"])
def test_all_that_met_one_overload_halve_the_limit_once(kind):
    controller = Controller(64)
    simulate(controller, Endpoint(), 3.0)
    before = controller.limit
    for number in range(20):
        controller.ended(Result(kind, 0.5), before - number, 100.0 + number / 100)
    assert controller.limit == before // 2


def test_refusals_that_are_told_late_or_met_before_everybody_knew_belong_to_the_same_overload():
    controller = Controller(64, notice_seconds=0.3)
    simulate(controller, Endpoint(), 4.0)
    before = controller.limit
    controller.ended(Result("refused", 0.5), before, 100.0)
    controller.ended(Result("refused", 0.1, age=0.5), before, 100.2)
    controller.ended(Result("refused", 0.1), before, 100.3)
    assert controller.limit == before // 2
    controller.ended(Result("refused", 0.1), before // 2, 101.0)
    assert controller.limit == before // 4


def test_failures_between_answers_leave_some_requests_in_flight_but_an_outage_leaves_one():
    controller = Controller(64)
    for second in range(1, 20):
        controller.ended(Result("failed", 0.5), controller.limit, float(second))
        controller.ended(Result("answered", 0.5), 1, second + 0.1)
        assert controller.limit >= FIRST_LIMIT
    for second in range(20, 30):
        controller.ended(Result("failed", 0.1), controller.limit, float(second))
    assert controller.limit == 1


def test_after_an_outage_the_limit_starts_at_half_of_what_was_borne_before():
    controller = Controller(64)
    simulate(controller, Endpoint(), 3.0)
    before = controller.limit
    for second in range(10, 20):
        controller.ended(Result("failed", 0.1), controller.limit, float(second))
    assert controller.limit == 1
    controller.ended(Result("answered", 0.1), 1, 30.0)
    assert before // 2 - 1 <= controller.limit <= before // 2 + 1


def test_a_wait_counts_from_the_end_of_the_request_that_was_told_it():
    controller = Controller(64)
    controller.ended(Result("refused", 0.1, Advice(7.0), age=2.0), 4, 10.0)
    assert controller.wait(10.0) == 5.0


def test_retry_after_pauses_every_request_and_no_longer_than_allowed():
    controller = Controller(64, longest_wait=20.0)
    controller.ended(Result("refused", 0.1, Advice(7.0)), 4, 10.0)
    assert (controller.wait(10.0), controller.wait(16.0), controller.wait(17.0)) == (7.0, 1.0, 0.0)
    controller.ended(Result("refused", 0.1, Advice(3600.0)), 4, 20.0)
    assert controller.wait(20.0) == 20.0


def test_requests_stop_when_the_budget_is_used_up_and_go_on_after_its_reset():
    controller = Controller(64)
    controller.started(1, 0.0)
    controller.ended(Result("answered", 0.5, Advice(None, (Budget("requests", 3, 10, 6.0),))), 1, 0.5)
    assert controller.startable(0.5) == 3
    controller.started(3, 1.0)
    assert (controller.startable(1.0), controller.refills_in(1.0)) == (0, 5.5)
    assert (controller.startable(6.5), controller.refills_in(6.5)) == (10, 0.0)


def test_requests_that_started_later_count_against_what_an_answer_says_is_left():
    controller = Controller(64)
    controller.started(1, 0.0)
    controller.started(2, 0.25)
    controller.ended(Result("answered", 0.5, Advice(None, (Budget("requests", 5, 10, 6.0),))), 3, 0.5)
    assert controller.startable(0.5) == 3


def test_a_budget_of_tokens_is_spent_by_the_mean_request():
    controller = Controller(64)
    controller.ended(Result("answered", 0.5, Advice(None, (Budget("tokens", 1000, 5000, 6.0),)), 300), 1, 0.5)
    assert controller.startable(0.5) == 3


def test_a_budget_smaller_than_one_request_stops_nothing_for_good():
    controller = Controller(64)
    controller.ended(Result("answered", 0.5, Advice(None, (Budget("tokens", 5, 10, 6.0),)), 300), 1, 0.5)
    assert (controller.startable(0.5), controller.startable(6.5)) == (0, 1)
