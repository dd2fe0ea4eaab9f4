"""On which node coordinator and fleet are started. Two nodes have it tried for real in `tests.chaos.head`."""

from __future__ import annotations

from types import SimpleNamespace

import deploy.service as module
from tests.support.episodes import settings


def test_a_service_with_a_journal_stays_on_its_node_and_ray_is_given_a_reason_to_heed_that(monkeypatch):
    here = "ab" * 28
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: here))
    options = module._restarts(settings(service__journal="/a/journal"))
    assert (options["scheduling_strategy"].node_id, options["scheduling_strategy"].soft) == (here, True)
    assert options["memory"] > 0, "Ray places an actor that needs nothing at random"
    assert module._restarts(settings()) == {}
