"""The phases of a start, as its log line shows them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deploy.engines.sglang import start_seconds
from rollout_service import phases as module
from rollout_service.phases import Phases


def test_phases_follow_each_other_and_name_their_steps(monkeypatch):
    times = iter([100.0, 102.0, 143.5, 150.0])
    clock = SimpleNamespace(monotonic=lambda: next(times))  # this module's alone: other threads here have the real one
    monkeypatch.setattr(module, "time", clock)
    phases = Phases()
    phases.end("Ray")
    phases.end("replicas", {"imports": 6.0, "weights": 3.24})
    assert str(phases) == "Ray 2.0 s, replicas 41.5 s (imports 6.0 s, weights 3.2 s)"
    assert phases.total == 50.0


def test_sglang_s_own_account_is_split_so_that_its_parts_are_the_whole():
    startup = {
        "tokenizer_e2e": 40.0,
        "scheduler_e2e": 30.0,
        "load_weight": 3.0,
        "kv_cache_allocation": 0.5,
        "cuda_graph": {"decode": 20.0, "prefill": 5.0},
    }
    seconds = start_seconds(46.0, startup)
    assert seconds == {
        "imports": 6.0,
        "processes and their imports": 10.0,
        "weights": 3.0,
        "key-value memory": 0.5,
        "graphs": 25.0,
        "rest of the scheduler": 1.5,
    }
    assert sum(seconds.values()) == pytest.approx(46.0)
