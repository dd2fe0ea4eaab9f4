"""The meter, and the forms in which its readings are given away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import rollout_service.metrics.text as text
from rollout_service.metrics.meter import Meter, Reading
from rollout_service.metrics.table import TABLE

DOMAINS = st.sampled_from(["retail", "airline"])
RECORDS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.just("sampled_tokens_total"), st.integers(0, 50), DOMAINS),
        st.tuples(st.just("observe"), st.just("episode_turns"), st.integers(0, 300), DOMAINS),
    )
)


@given(RECORDS)
def test_the_sink_gets_what_the_readings_say(records):
    sent: list[tuple[str, float, str]] = []
    meter = Meter(lambda metric, value, labels: sent.append((metric.name, value, labels["domain"])))
    for method, name, value, domain in records:
        getattr(meter, method)(name, value, domain=domain)
    for reading in meter.readings():
        values = [value for name, value, domain in sent if (name, (domain,)) == (reading.name, reading.labels)]
        assert reading.value == sum(values)
        if TABLE[reading.name].kind == "histogram":
            assert reading.count == len(values)
            bounds = (*TABLE[reading.name].buckets, float("inf"))
            below = [sum(value <= bound for value in values) for bound in bounds]
            assert [sum(reading.buckets[: i + 1]) for i in range(len(bounds))] == below


def test_a_gauge_has_its_last_value_and_a_counter_reaches_a_total_but_never_sinks():
    meter = Meter()
    for value in (3, 1):
        meter.set("running", value)
        meter.reach("retries_total", value)
    assert text.flat(meter.readings()) == {"running": 1.0, "retries_total": 3.0}


@pytest.mark.parametrize(
    ("method", "name", "labels"),
    [
        ("add", "episodes", {"domain": "retail", "outcome": "completed"}),
        ("add", "episodes_total", {"domain": "retail"}),
        ("add", "episodes_total", {"domain": "retail", "outcome": "completed", "task": "17"}),
        ("set", "faults_total", {"kind": "policy"}),
        ("observe", "running", {}),
    ],
)
def test_what_the_table_does_not_have_is_refused(method, name, labels):
    with pytest.raises(ValueError, match=f"the table has no .* {name} with the labels"):
        getattr(Meter(), method)(name, 1.0, **labels)


def test_numbers_of_numpy_are_recorded_as_floats():
    sent: list[float] = []
    meter = Meter(lambda metric, value, labels: sent.append(value))
    meter.add("sampled_tokens_total", np.int64(3), domain="retail")
    meter.observe("episode_turns", np.int32(3), domain="retail")
    meter.set("running", np.float32(3))
    assert {type(value) for value in (*sent, *text.flat(meter.readings()).values())} == {float}


def test_a_counter_that_would_sink_is_refused():
    with pytest.raises(ValueError, match="cannot grow by -1"):
        Meter().add("retries_total", -1)


def some() -> list[Reading]:
    meter = Meter()
    meter.set("held_back", 2, reason="slots")
    meter.add("episodes_total", domain='re"tail\n', outcome="completed")
    for reward in (0.0, 1.0, 1.0):
        meter.observe("reward", reward, domain="retail")
    return meter.readings()


def test_a_logger_gets_a_flat_dict_with_means():
    assert text.flat(some()) == {
        'episodes_total/re"tail\n/completed': 1.0,
        "reward/retail/count": 3.0,
        "reward/retail/sum": 2.0,
        "reward/retail/mean": 2 / 3,
        "held_back/slots": 2.0,
    }


def test_prometheus_gets_text_in_which_a_label_cannot_end_its_line():
    lines = text.prometheus(some()).splitlines()
    assert r'rollout_service_episodes_total{domain="re\"tail\n",outcome="completed"} 1' in lines
    buckets = [line for line in lines if line.startswith("rollout_service_reward_bucket")]
    assert buckets[0] == 'rollout_service_reward_bucket{domain="retail",le="0.01"} 1'
    assert buckets[-1] == 'rollout_service_reward_bucket{domain="retail",le="+Inf"} 3'
    assert 'rollout_service_reward_sum{domain="retail"} 2' in lines
    assert "# TYPE rollout_service_held_back gauge" in lines


def test_readings_pass_a_gateway_unchanged():
    form = TypeAdapter(list[Reading])
    assert form.validate_json(form.dump_json(some())) == some()
