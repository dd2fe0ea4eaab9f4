"""What a client's own settings may be beside those of the service that it attaches to."""

from __future__ import annotations

import pytest

from rollout_service import RolloutConfig
from rollout_service.attaching import check_settings, chosen, collection_request
from rollout_service.errors import ConfigError, RolloutError, ServiceError, TaskError


def settings(**overrides):
    return RolloutConfig.load(overrides={k.replace("__", "."): v for k, v in overrides.items()}, environ={})


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"service__max_buffered_groups": 4},
            r"max_buffered_groups: .* has 64, not 4\..*another service\.name",
        ),
        ({"service__slots": 4}, r"service\.slots: .* has 16, not 4"),
        ({"service__actors": 4}, r"service\.actors: .* has 2, not 4"),
        ({"limits__max_turns": 3}, r"limits\.max_turns: .* has 30, not 3"),
        ({"policy__script": {"early_stop": 0.5}}, r"policy\.script\.early_stop: .* has 0\.0, not 0\.5"),
        ({"policy__sampling": {"temperature": 0.5}}, r"has 1\.0, not 0\.5.*give sampling= to each collection"),
        ({"policy__autoscaling": {"max_replicas": 2}}, r"policy\.autoscaling\.max_replicas: .* has None, not 2"),
        ({"agent": "gt"}, r"agent: .* has 'llm', not 'gt'"),
        ({"tasks__seed": 7}, r"tasks\.seed: .* has 0, not 7.*give seed= to each collection"),
        ({"service__max_staleness": None}, r"service\.max_staleness: .* has 3, not None.*give max_staleness= to each"),
        ({"tasks__ids": None}, r"tasks\.ids: .* has \['1'\], not None"),
    ],
)
def test_what_differs_and_no_collection_can_choose_is_refused_with_both_values(own, message):
    running = settings(service__actors=2, service__max_staleness=3, tasks__ids=["1"])
    with pytest.raises(ServiceError, match=message):
        check_settings(settings(**own), running)


def test_what_a_client_leaves_at_its_default_is_the_service_s():
    check_settings(settings(), settings(service__actors=2, limits__max_turns=3, service__max_staleness=1))
    check_settings(settings(service__name="other", limits__max_turns=3), settings(limits__max_turns=3))


def test_a_context_that_is_left_to_the_endpoint_is_the_one_that_the_service_found():
    http = {"policy__engine": "http", "policy__url": "http://router:3000", "policy__tokenizer": "/models/m"}
    running = settings(**http, policy__context_length=8192)
    check_settings(settings(**http, policy__context_length=None), running)
    with pytest.raises(ServiceError, match=r"policy\.context_length: .* has 8192, not 4096"):
        check_settings(settings(**http, policy__context_length=4096), running)


def test_what_a_collection_may_choose_goes_with_each_of_them():
    own = settings(
        tasks__domain="telecom",
        tasks__split="small",
        tasks__shuffle=False,
        service__max_staleness=0,
        service__late="deliver",
        service__max_attempts=1,
    )
    check_settings(own, settings(service__max_staleness=5))
    assert chosen(own) == {
        "domain": "telecom",
        "split": "small",
        "shuffle": False,
        "max_staleness": 0,
        "late": "deliver",
        "max_attempts": 1,
    }
    assert chosen(settings()) == {}


def test_what_a_call_asks_for_stands_over_the_client_s_settings_and_those_over_the_service_s():
    own = settings(tasks__domain="mock", tasks__ids=["create_task_1"], service__max_attempts=1)
    service = settings(policy__sampling={"temperature": 0.7, "max_new_tokens": 900})

    def request(**selection):
        return collection_request(own, service, selection, n=4, group_size=2)

    plain = request()
    assert (plain.n, plain.group_size, plain.domain, plain.ids, plain.sampling) == (
        4,
        2,
        "mock",
        ["create_task_1"],
        None,
    )
    assert request(domain=None, max_attempts=3).max_attempts == 3
    other = request(domain="retail", split="test")
    assert (other.domain, other.split, other.ids) == ("retail", "test", None), "the ids are tasks of another domain"
    assert request(sampling={"temperature": 0.2}).sampling == service.policy.sampling.model_copy(
        update={"temperature": 0.2}
    )


@pytest.mark.parametrize(
    ("selection", "error", "message"),
    [
        ({"temperature": 1.0}, RolloutError, r"Unknown argument temperature\. Choose from endless, domain, split"),
        ({"sampling": 0.5}, ConfigError, r"sampling is 0\.5"),
        ({"sampling": {"temprature": 0.5}}, ConfigError, r"policy\.sampling\.temprature"),
        ({"max_attempts": 0}, TaskError, "max_attempts"),
    ],
)
def test_a_call_that_asks_for_what_there_is_not_is_refused_by_its_name(selection, error, message):
    with pytest.raises(error, match=message):
        collection_request(settings(), settings(), selection, n=2, group_size=1)
