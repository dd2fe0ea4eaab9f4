"""The table of a service that is watched."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

import rollout_service.cli.service_table as module
from rollout_service.cli.service_table import service_table, watched
from rollout_service.errors import ServiceError
from rollout_service.services import Parts

PARTS = Parts("rollout", "rollout_service", ["rollout-coordinator"], [])


def report(finished: int) -> dict[str, Any]:
    progress = {"done": finished, "episodes": 9, "waits_for": "4 episodes running"}
    return {
        "state": "running",
        "owner": None,
        "actors": 2,
        "lost_actors": 0,
        "start_error": None,
        "running": 4,
        "slots": 32,
        "finished": finished,
        "scored": finished,
        "mean_reward": 0.5,
        "faults": {"service": 1},
        "last_faults": {"service": "[red]LostActor[/red]: it died"},
        "user_flaws": {"flaws": {}},
        "user_reviews": {"flaws": {}},
        "user_flaws_by_task": {},
        "weight_version": 3,
        "paused": False,
        "clients": {},
        "collections": {"c1": progress},
    }


@pytest.fixture
def screen(monkeypatch) -> Console:
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.0)
    return Console(file=io.StringIO(), force_terminal=True, width=160)


def test_a_watched_service_is_looked_at_until_ctrl_c_and_the_last_table_stays(screen):
    looks = iter([report(1), report(2), report(7)])

    def look() -> tuple[Parts, dict[str, Any]]:
        found = next(looks, None)
        if found is None:
            raise KeyboardInterrupt
        return PARTS, found

    _, seen = watched(look, "auto", screen)
    assert seen["finished"] == 7
    shown = screen.file.getvalue()
    assert all(f"{finished} finished" in shown for finished in (1, 2, 7))
    assert shown.rindex("7 finished") > shown.rindex("2 finished")
    assert "7 of 9 episodes done; waits for 4 episodes running" in shown
    assert "\x1b[?25h" in shown[shown.rindex("7 finished") :], "the cursor is there again"


def test_a_watched_service_that_is_gone_says_so(screen):
    looks = iter([(PARTS, report(1))])

    def look() -> tuple[Parts, dict[str, Any]]:
        if (found := next(looks, None)) is None:
            raise ServiceError("There is no service named 'rollout'.")
        return found

    with pytest.raises(ServiceError, match="no service named"):
        watched(look, "auto", screen)


def test_each_endpoint_has_a_row():
    numbers = {"in_flight": 2, "limit": 8, "waiting": 1, "answered": 40, "refused": 3}
    endpoints = {f"{side}_endpoint": numbers | {"limit": limit} for side, limit in (("user", 8), ("review", 9))}
    text = io.StringIO()
    Console(file=text, width=160).print(service_table(PARTS, report(1) | endpoints | {"judge_endpoint": None}, "auto"))
    rows = [line for line in text.getvalue().splitlines() if "endpoint" in line]
    assert ["user's" in row for row in rows] == [True, False]
    assert "reviewer's endpoint" in rows[1]
    assert "2 requests in flight of 9, 1 wait; 40 answered, 3 refused or failed" in rows[1]


def test_what_a_fault_said_is_shown_as_it_is():
    text = io.StringIO()
    said = "[red]LostActor[/red]: it\x1b[2J died \ud800"
    found = report(1) | {"last_faults": {"service": said}}
    Console(file=text, width=160).print(service_table(PARTS, found, "auto"))
    assert r"1, the last one: [red]LostActor[/red]: it\x1b[2J died \ud800" in text.getvalue()
