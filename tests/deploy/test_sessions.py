"""Which replica serves which session, against a model that counts anew every time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import sessions
from deploy.sessions import SessionTable

REPLICAS = ["a", "b", "c", "d"]
alive = st.lists(st.sampled_from(REPLICAS), min_size=1, unique=True)
times = st.sampled_from([0.0, 0.0, 0.0, 1.0, 30.0, 59.0, 60.0, 61.0, 120.0, 121.0])
"""Between two requests: sums of these lie on both sides of the 120 s, and on them."""


class CountedAnew:
    """What a table should know, in one dictionary: the replica and the last use of each session, latest use last."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.known: dict[str, tuple[str, float]] = {}

    def counts(self, now: float) -> Counter[str]:
        return Counter(replica for replica, used in self.known.values() if now - used <= 120)

    def check(self, session: str, chosen: str, alive: list[str], now: float) -> None:
        before, _ = self.known.pop(session, (None, 0.0))
        if before in alive:
            assert chosen == before, "the session moved although its replica lives"
        else:
            counts = self.counts(now)
            assert chosen in alive
            assert counts[chosen] == min(counts[replica] for replica in alive), "another replica had fewer sessions"
        self.known[session] = chosen, now
        idle = [each for each, (_, used) in self.known.items() if now - used > 120]
        for each in idle[: max(0, len(idle) - self.kept)]:
            del self.known[each]


def in_use(table: SessionTable) -> list[int]:
    return [table.in_use(replica) for replica in REPLICAS]


def count_in_use(table: SessionTable) -> int:
    """Number of sessions in use."""
    return sum(in_use(table))


@given(
    events=st.lists(st.tuples(st.sampled_from("uvwxyz"), alive, times), max_size=40),
    kept=st.sampled_from([0, 1, 3, 100]),
)
@settings(max_examples=300, deadline=None)
def test_whatever_comes_sessions_stay_new_ones_go_where_fewest_are_and_counts_equal_a_recount(events, kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "_KEPT", kept)
        table, model, now = SessionTable(), CountedAnew(kept), 0.0
        for session, living, later in events:
            now += later
            model.check(session, table.replica_of(session, living, now), living, now)
            assert in_use(table) == [model.counts(now)[replica] for replica in REPLICAS]
            assert len(table._replicas) <= kept + count_in_use(table), "memory is not bounded"


@given(count=st.integers(0, 60), living=alive, pause=st.floats(0, 120))
def test_new_sessions_go_evenly(count, living, pause):
    table = SessionTable()
    for i in range(count):
        table.replica_of(f"s{i}", living, pause * i / 60)
    counts = [table.in_use(replica) for replica in living]
    assert sum(counts) == count
    assert max(counts) - min(counts) <= 1


@given(count=st.integers(1, 40), order=st.randoms(use_true_random=False))
def test_the_sessions_of_a_dead_replica_go_evenly_to_the_others_and_no_other_session_moves(count, order):
    table, names = SessionTable(), [f"s{i}" for i in range(count)]
    before = {name: table.replica_of(name, REPLICAS, 0) for name in names}
    order.shuffle(names)
    after = {name: table.replica_of(name, REPLICAS[1:], 1) for name in names}
    assert all(after[name] == before[name] for name in names if before[name] != REPLICAS[0])
    counts = [table.in_use(replica) for replica in REPLICAS[1:]]
    assert table.in_use(REPLICAS[0]) == 0
    assert sum(counts) == count
    assert max(counts) - min(counts) <= 1


def test_a_replica_that_joins_gets_the_new_sessions_until_it_has_as_many_and_takes_none_from_the_others():
    table = SessionTable()
    old = {f"s{i}": table.replica_of(f"s{i}", ["a", "b"], 0) for i in range(8)}
    assert [table.replica_of(f"new{i}", ["a", "b", "c"], 1) for i in range(4)] == ["c"] * 4
    assert {name: table.replica_of(name, ["a", "b", "c"], 2) for name in old} == old
    assert (table.in_use("a"), table.in_use("b"), table.in_use("c")) == (4, 4, 4)


def test_a_session_whose_replica_comes_back_under_its_name_stays_where_it_moved_to():
    table = SessionTable()
    first = table.replica_of("s", ["a", "b"], 0)
    second = table.replica_of("s", [replica for replica in "ab" if replica != first], 1)
    assert second != first
    assert table.replica_of("s", ["a", "b"], 2) == second
    assert (table.in_use(first), table.in_use(second)) == (0, 1)


@given(events=st.lists(st.tuples(st.integers(0, 9).map(str), alive, times), max_size=40))
def test_two_tables_that_see_the_same_requests_agree_in_whatever_order_they_list_the_replicas(events):
    one, other, now = SessionTable(), SessionTable(), 0.0
    for session, living, later in events:
        now += later
        assert one.replica_of(session, living, now) == other.replica_of(session, sorted(living)[::-1], now)


def test_tables_of_different_processes_break_ties_alike_and_not_always_for_the_same_replica():
    first = [SessionTable().replica_of(f"s{i}", REPLICAS, 0) for i in range(12)]
    assert "".join(first) == "ccdacdcbaadb", "the choice must not depend on the process, as Python's own hash does"
    many = Counter(SessionTable().replica_of(f"s{i}", REPLICAS, 0) for i in range(400))
    assert min(many[replica] for replica in REPLICAS) > 60


def test_a_silent_session_stops_counting_after_120_seconds_but_keeps_its_replica():
    table = SessionTable()
    first = table.replica_of("silent", ["a", "b"], 0)
    other = table.replica_of("talking", ["a", "b"], 119)
    assert other != first
    assert table.replica_of("talking", ["a", "b"], 120) == other
    assert table.in_use(first) == 1
    assert table.replica_of("talking", ["a", "b"], 120.5) == other
    assert table.in_use(first) == 0
    assert table.replica_of("new", ["a", "b"], 121) == first, "the silent one does not count any more"
    assert table.replica_of("silent", ["a", "b"], 10_000) == first
    assert table.in_use(first) == 1, "it counts again, and the others are silent by now"


def test_a_session_that_talks_on_counts_once_however_often_it_comes():
    table = SessionTable()
    for second in range(0, 1000, 10):
        table.replica_of("s", ["a"], second)
        assert table.in_use("a") == 1


def test_a_silent_session_stops_counting_also_where_older_ones_talk_on():
    table = SessionTable()
    assert table.replica_of("older", ["a"], 0) == table.replica_of("silent", ["a"], 1) == "a"
    table.replica_of("older", ["a"], 100)
    assert table.in_use("a") == 2
    table.replica_of("older", ["a"], 122)
    assert table.in_use("a") == 1


def test_the_session_that_was_silent_for_longest_is_forgotten_first_and_is_new_when_it_returns(monkeypatch):
    monkeypatch.setattr(sessions, "_KEPT", 1)
    table = SessionTable()
    first = table.replica_of("x", ["a", "b"], 0)
    second = table.replica_of("y", ["a", "b"], 1)
    assert second != first
    table.replica_of("x", ["a", "b"], 2)
    table.replica_of("z", [second], 200)  # now x is kept, and y is forgotten
    assert table.replica_of("y", ["a", "b"], 201) == first, "it is new, and goes where no session is in use"
    assert table.replica_of("x", ["a", "b"], 202) == first


def test_an_environment_actor_does_not_grow_with_every_episode():
    table = SessionTable()
    for episode in range(20_000):
        table.replica_of(f"c-{episode}", ["a"], episode)
    assert len(table._replicas) == 4096 + 121, "those of the last 120 seconds are in use"


def test_a_replica_nobody_ever_heard_of_has_no_session():
    assert SessionTable().in_use("a") == 0
