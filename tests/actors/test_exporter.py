"""Who exports metrics through Ray. What arrives is looked at with a real Prometheus, in `test_model_serving`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import actors.exporter as module
from tests.support.episodes import settings


@pytest.mark.parametrize(
    ("actor", "wanted", "exports"), [("a1", True, True), ("a1", False, False), (None, True, False)]
)
def test_only_actors_of_a_service_that_wants_it_export(actor, wanted, exports, monkeypatch):
    context = SimpleNamespace(get_actor_id=lambda: actor)
    monkeypatch.setattr(
        module, "ray", SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    )
    sent = []
    monkeypatch.setattr(module, "_RaySink", lambda service: lambda *record: sent.append((service, *record[1:])))
    meter = module.meter(settings(service__name="mine", service__metrics=wanted))
    meter.set("running", 3)
    assert sent == ([("mine", 3.0, {})] if exports else [])
    assert [reading.value for reading in meter.readings()] == [3.0], "client.metrics() has it in any case"
