"""When an engine counts as hanging: by a clock that nobody sets."""

from types import SimpleNamespace
from typing import Any

import pytest

from deploy.engines import sglang
from deploy.engines.cache_hits import CacheHits
from deploy.engines.prefix_use import PrefixUse
from deploy.engines.sglang import SglangEngine
from rollout_service.policy.replicas import CacheFigures, Occupancy

DAY = 86400.0


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock on the wall and the one that only goes on, both in the test's hands."""
    clocks = SimpleNamespace(wall=1e9, steady=1e4)
    monkeypatch.setattr("time.time", lambda: clocks.wall)
    monkeypatch.setattr("time.monotonic", lambda: clocks.steady)
    return clocks


def busy_engine(clocks: Any) -> Any:
    """An engine with a turn in flight whose scheduler has just said something, without the processes behind it."""
    engine: Any = object.__new__(SglangEngine)
    engine._manager = SimpleNamespace(gracefully_exit=False, rid_to_state={"r": 1}, last_receive_tstamp=clocks.wall)
    engine._busy_since, engine._frozen, engine._word = clocks.steady, False, (0.0, 0.0)
    return engine


@pytest.mark.parametrize("step", [DAY, -DAY])
def test_a_clock_that_is_set_neither_kills_a_busy_engine_nor_hides_a_hanging_one(clocks: Any, step: float) -> None:
    engine = busy_engine(clocks)
    engine.check_health()
    clocks.wall += step
    clocks.steady += 10
    engine.check_health()
    clocks.wall += sglang._STALL_SECONDS
    clocks.steady += sglang._STALL_SECONDS
    with pytest.raises(RuntimeError, match="has said nothing for 310 s"):
        engine.check_health()
    engine._manager.last_receive_tstamp = clocks.wall
    engine.check_health()


def test_an_sglang_that_does_not_say_how_full_it_is_serves_all_the_same():
    engine: Any = object.__new__(SglangEngine)
    engine._manager, engine._hits = SimpleNamespace(rid_to_state={"r": 1}), CacheHits()
    assert engine.occupancy() is None
    load = SimpleNamespace(num_waiting_reqs=3, token_usage=0.5)
    engine._manager.load_snapshot_reader = SimpleNamespace(read_all=lambda: [load])
    assert engine.occupancy() == Occupancy(3, 0.5, 0.0)
    load.max_total_num_tokens, load.num_running_reqs, engine._prefixes = 9000, 2, PrefixUse()
    assert engine.occupancy() == Occupancy(3, 0.5, 0.0, CacheFigures(9000, 1, 1, 0, 0, 0.0, 0, 0.0, 0.0, 1.0))
