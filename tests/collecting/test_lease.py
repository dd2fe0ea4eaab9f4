"""Leases: who keeps one, who loses it, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout_service.collecting.lease import Leases, renewal_seconds

SECONDS = 20.0
STEP = renewal_seconds(SECONDS)

STEPS = st.lists(
    st.tuples(st.floats(0.0, 3 * SECONDS), st.sampled_from(["look", "a renews", "b renews", "b leaves"])), max_size=60
)


@given(STEPS)
def test_no_client_loses_its_lease_before_it_was_silent_that_long(steps):
    now, leases, heard = 0.0, Leases(SECONDS, 0.0), {}
    for passed, what in steps:
        now += passed
        if what == "look":
            for client in leases.lapsed(now):
                assert now - heard.pop(client) >= SECONDS
        elif what == "b leaves":
            leases.give_up("b")
            heard.pop("b", None)
        else:
            leases.renew(what[0], now)
            heard[what[0]] = now
        assert leases.silences(now).keys() == heard.keys()


@given(st.lists(st.floats(0.0, STEP), max_size=60), st.floats(0.0, SECONDS))
def test_a_silent_client_loses_its_lease_at_the_first_look_after_that_time_and_once(looks, first):
    """Where the holder looks as often as it should."""
    now, leases = 0.0, Leases(SECONDS, 0.0)
    leases.renew("a", 0.0)
    lost = []
    for passed in looks:
        now += passed
        lost += [(now, client) for client in leases.lapsed(now)]
        # A look just at the end of the lease may round either way.
        assert len(lost) == (now >= SECONDS) or abs(now - SECONDS) < 1e-6


@given(st.lists(st.floats(0.0, 0.9 * SECONDS), max_size=30), st.lists(st.floats(0.0, STEP), min_size=1, max_size=9))
def test_a_client_that_renews_in_time_keeps_its_lease(renewals, looks):
    now, leases = 0.0, Leases(SECONDS, 0.0)
    leases.renew("a", 0.0)
    for passed in renewals:
        for look in sorted(looks):
            if look <= passed:
                assert leases.lapsed(now + look) == []
        now += passed
        leases.renew("a", now)
        assert leases.lapsed(now) == []


def test_time_in_which_nobody_looked_does_not_count_as_silence():
    leases = Leases(SECONDS, 0.0)
    leases.renew("a", 0.0)
    assert leases.lapsed(1000.0) == []  # the holder was stopped for a quarter of an hour
    assert leases.silences(1000.0) == {"a": STEP}
    assert leases.lapsed(1000.0 + STEP) == []
    assert leases.lapsed(1000.0 + 2 * STEP) == []
    assert leases.lapsed(1000.0 + 3 * STEP) == ["a"]
