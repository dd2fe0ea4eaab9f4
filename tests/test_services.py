"""Services are found by the names of their parts."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import serve

import rollout_service.cluster as cluster
import rollout_service.services as services
from rollout_service.config.service import Service
from rollout_service.errors import ServiceError
from rollout_service.policy import applications

NAMES = st.one_of(
    st.sampled_from(["rollout", "a-fleet", "a-coordinator", "a-environment-1", "a-policy", "policy"]),
    st.text("ab-\n", min_size=1),
)
PARTS = st.sets(
    st.sampled_from(["coordinator", "fleet", "environment-0", "environment-12", "policy", "gateway"]), min_size=1
)


@given(st.dictionaries(NAMES, PARTS))
def test_every_service_is_found_with_its_own_parts_and_is_dead_without_a_coordinator(there):
    served = {"policy", "gateway"}
    actors = [(f"{name}-{part}", "here") for name, parts in there.items() for part in parts - served]
    names = [f"{name}-{part}" for name, parts in there.items() for part in parts & served]
    others = [("SERVE_CONTROLLER_ACTOR", "serve"), ("trainer", "here")]
    with (
        mock.patch.object(cluster, "named_actors", return_value=actors + others),
        mock.patch.object(applications, "served", return_value=[*names, "policy", "app"]),
    ):
        found = {parts.name: parts for parts in services.find_all()}
        assert found.keys() == there.keys()
        for name, parts in there.items():
            assert sorted(found[name].actors) == sorted(f"{name}-{part}" for part in parts - served)
            assert sorted(found[name].applications) == sorted(f"{name}-{part}" for part in parts & served)
            assert found[name].is_dead == ("coordinator" not in parts)
            assert services.find(name, "here") == found[name]
            assert sorted(services.find_actors(name, "here")) == sorted(found[name].actors)


def test_a_dead_service_does_not_take_the_applications_of_a_living_namesake_in_another_namespace():
    actors = [("a-fleet", "old"), ("a-coordinator", "new"), ("a-fleet", "new")]
    with (
        mock.patch.object(cluster, "named_actors", return_value=actors),
        mock.patch.object(applications, "served", return_value=["a-gateway"]),
    ):
        assert {parts.namespace: parts.applications for parts in services.find_all()} == {
            "old": [],
            "new": ["a-gateway"],
        }


def test_the_command_that_ends_a_service_names_the_namespace_where_it_is_not_the_usual_one():
    named = {place: services.Parts("left", place).stop_command for place in ("", "rollout_service", "mine")}
    usual = "rollout-service service stop left"
    assert named == {"": usual, "rollout_service": usual, "mine": f"{usual} --namespace mine"}


def test_an_application_that_serve_never_forgets_is_named_and_all_else_is_ended(monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(applications, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    stuck = SimpleNamespace(deployments={})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"a-policy": stuck}))
    monkeypatch.setattr(serve, "delete", lambda name, _blocking: None)
    killed: list[str] = []
    monkeypatch.setattr(cluster, "kill", lambda actor, namespace: killed.append(actor))
    monkeypatch.setattr(cluster, "named_actors", lambda: [("SERVE_REPLICA::a-policy#policy#x", "serve")])
    with pytest.raises(ServiceError, match="has the application a-policy still"):
        services.end(Service(name="a"), ["a-policy"])
    assert killed[0] == "SERVE_REPLICA::a-policy#policy#x"
    assert killed[-1] == "a-coordinator"
