"""Typed handles agree with the actors behind them: Ray itself checks neither names nor types."""

from __future__ import annotations

import inspect
from typing import get_args, get_type_hints

import pytest

from actors.coordinator import Coordinator
from actors.environment import EnvironmentActor, EnvironmentHandle
from actors.fleet import Fleet
from deploy.replica import PolicyReplica
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.policy.deployment import ReplicaMethod
from rollout_service.policy.fleet import FleetHandle

PAIRS = [(CoordinatorHandle, Coordinator), (FleetHandle, Fleet), (EnvironmentHandle, EnvironmentActor)]


@pytest.mark.parametrize(("handle", "actor"), PAIRS)
def test_a_handle_has_every_public_method_of_its_actor_and_no_other(handle, actor):
    methods = {name for name, _ in inspect.getmembers(actor, inspect.isfunction) if not name.startswith("_")}
    assert set(get_type_hints(handle)) == methods


def test_a_replica_has_the_methods_that_the_fleet_calls_in_all_of_them():
    missing = {name for name in get_args(ReplicaMethod) if not callable(getattr(PolicyReplica, name, None))}
    assert missing == set()


@pytest.mark.parametrize(("handle", "actor"), PAIRS)
def test_a_handle_s_methods_take_and_return_what_its_actor_s_do(handle, actor):
    for name, method in get_type_hints(handle).items():
        if name == "run_episode":  # it returns two references, which `RemoteMethod` cannot say
            continue
        taken, returned = get_args(method)
        hints = get_type_hints(getattr(actor, name))
        assert (name, hints.pop("return"), tuple(hints.values())) == (name, returned, tuple(taken))
