"""The gate: real threads that wait for their turn."""

from __future__ import annotations

import threading
import time

import pytest

from rollout_service.errors import EpisodeEnd
from rollout_service.pacing.advice import Advice
from rollout_service.pacing.controller import FIRST_LIMIT, Result
from rollout_service.pacing.gate import Gate
from rollout_service.pacing.shares import Grant, Report
from rollout_service.tau2.deadline import Deadline

ANSWERED = Result("answered", 0.01)


def ask(gate: Gate, result: Result = ANSWERED, patience: Deadline | None = None) -> None:
    with gate.place(patience or Deadline(120.0)) as place:
        place.result = result


def many(work, count: int) -> None:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


def test_more_threads_than_places_all_get_their_turn_and_never_too_many_at_once():
    gate, lock, inside, most = Gate(3, 60.0, 600.0), threading.Lock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        with gate.place(Deadline(120.0)) as place:
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)
            with lock:
                inside -= 1
            place.result = ANSWERED

    many(work, 40)
    assert 1 <= most <= 3


def test_a_wait_that_one_request_was_told_holds_for_the_others():
    gate, starts = Gate(8, 60.0, 600.0), []
    told = time.monotonic()
    ask(gate, Result("refused", 0.01, Advice(1.0)))

    def work() -> None:
        with gate.place(Deadline(120.0)) as place:
            starts.append(time.monotonic())
            place.result = ANSWERED

    many(work, 6)
    assert len(starts) == 6
    assert min(starts) - told > 0.5


def test_a_request_whose_episode_is_cancelled_leaves_the_queue():
    gate, clock = Gate(1, 60.0, 600.0), Deadline(120.0)
    with gate.place(Deadline(120.0)):
        threading.Timer(0.1, clock.cancelled.set).start()
        with pytest.raises(EpisodeEnd):
            ask(gate, patience=clock)
    ask(gate)


def test_a_machine_without_another_thread_fails_one_request_and_not_all_later_ones(monkeypatch):
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    gate = Gate(1, 60.0, 600.0)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            ask(gate)
    ask(gate, patience=Deadline(60.0))


def test_requests_go_on_when_the_exchange_is_lost_and_return_to_it_when_it_is_back():
    reports: list[Report] = []
    is_lost = False

    def exchange(report: Report) -> Grant:
        if is_lost:
            raise ConnectionError("the pacer is gone")
        reports.append(report)
        return Grant(2)

    gate = Gate(8, 60.0, 600.0, exchange)
    ask(gate)
    is_lost = True
    for _ in range(20):
        ask(gate)
    is_lost, before = False, len(reports)
    deadline = time.monotonic() + 120
    while len(reports) == before and time.monotonic() < deadline:
        ask(gate)
        time.sleep(0.05)
    assert len(reports) > before


def test_the_reports_count_every_start_and_every_result_once():
    reports: list[Report] = []

    def exchange(report: Report) -> Grant:
        reports.append(report)
        return Grant(4, 3)

    gate = Gate(8, 60.0, 600.0, exchange)
    many(lambda: ask(gate), 25)
    deadline = time.monotonic() + 120
    while sum(len(report.results) for report in reports) < 25 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sum(report.started for report in reports) == 25
    assert sum(len(report.results) for report in reports) == 25
    assert max(report.in_flight for report in reports) <= FIRST_LIMIT
