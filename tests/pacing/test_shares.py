"""How processes share the places of one endpoint."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.pacing.advice import Advice, Budget
from rollout_service.pacing.controller import FIRST_LIMIT, Controller, Result
from rollout_service.pacing.shares import SILENCE_SECONDS, Report, Shares

NAMES = ["a", "b", "c"]


def shares(limit: int) -> Shares:
    """With an endpoint that bears so many requests at a time."""
    controller = Controller(limit)
    while controller.limit < limit:
        controller.ended(Result("answered", 0.5), controller.limit, 0.5)
    return Shares(controller)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 30)), max_size=40))
def test_processes_together_never_have_more_in_flight_than_the_limit(limit, wishes):
    shared, places, now = shares(limit), dict.fromkeys(NAMES, 0), 1.0
    for name, wanted in wishes:
        in_flight = min(wanted, places[name])
        now += 0.1
        places[name] = shared.report(name, Report(in_flight, wanted - in_flight), now).places
        assert sum(places.values()) <= limit


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 20), st.lists(st.integers(1, 30), min_size=3, max_size=3))
def test_places_go_to_whoever_needs_them_in_fair_parts(limit, wishes):
    shared, places = shares(limit), dict.fromkeys(NAMES, 0)
    for turn in range(12):
        for name, wanted in zip(NAMES, wishes, strict=True):
            in_flight = min(wanted, places[name])
            places[name] = shared.report(name, Report(in_flight, wanted - in_flight), 1.0 + turn / 100).places
    assert sum(places.values()) == limit
    for name, wanted in zip(NAMES, wishes, strict=True):
        assert places[name] >= min(wanted, limit // 3)


def test_one_place_goes_round():
    shared, had = shares(1), set()
    in_flight = dict.fromkeys(NAMES, 0)
    for turn in range(24):
        for name in NAMES:
            results = (Result("answered", 0.1),) * in_flight[name]
            grant = shared.report(name, Report(0, 5, results=results), 1.0 + turn / 4)
            in_flight[name] = grant.places
            had |= {name} if grant.places else set()
    assert had == set(NAMES)


def test_a_process_that_falls_silent_gives_its_places_back():
    shared = shares(8)
    assert shared.report("dead", Report(0, 8), 1.0).places == 8
    assert shared.report("alive", Report(0, 8), 2.0).places == 0
    assert shared.report("alive", Report(0, 8), 2.0 + SILENCE_SECONDS).places == 8
    assert shared.status(20.0)["in_flight"] == 0


def test_a_process_that_has_ended_gives_its_places_back_at_once():
    shared = shares(8)
    shared.report("ended", Report(8, 0), 1.0)
    shared.forget("ended")
    shared.forget("never there")
    assert shared.report("alive", Report(0, 8), 1.1).places == 8


def test_a_process_that_comes_back_is_known_by_its_report():
    shared = shares(8)
    shared.report("alive", Report(5, 0), 1.0)
    assert shared.status(1.0)["in_flight"] == 5


def test_a_wait_that_one_process_was_told_holds_for_all():
    shared = shares(8)
    shared.report("a", Report(4, 0, 4), 1.0)
    shared.report("a", Report(3, 0, 0, (Result("refused", 0.1, Advice(7.0)),)), 2.0)
    assert shared.report("b", Report(0, 3), 3.0).pause_seconds == 6.0


def test_what_is_left_of_a_budget_is_handed_out_once():
    shared = shares(8)
    told = Result("answered", 0.5, Advice(None, (Budget("requests", 5, 100, 6.0),)))
    first = shared.report("a", Report(0, 3, 1, (told,)), 1.0)
    second = shared.report("b", Report(0, 8), 1.0)
    assert (first.starts or 0) + (second.starts or 0) <= 5
    shared.report("a", Report(3, 3, 3), 2.0)
    shared.report("b", Report(2, 6, 2), 2.0)
    grant = shared.report("a", Report(3, 3), 2.0)
    assert (grant.starts, grant.pause_seconds) == (0, 5.0)


def test_places_that_nobody_needs_are_handed_out_before_they_are_asked_for():
    shared = Shares(Controller(64))
    assert shared.report("a", Report(0, 0), 1.0).places == FIRST_LIMIT
