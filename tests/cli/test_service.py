"""`rollout-service service`: a service that lives until it is stopped, and what dead ones leave."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

import rollout_service.cli.service_table as service_table
import rollout_service.services as services
from rollout_service.client import RolloutClient
from tests.support.commands import command, process
from tests.support.episodes import settings

HERE = ["--address", "auto"]


def said(text: str) -> str:
    """Without the console's line breaks and borders."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.usefixtures("cluster")
def test_a_service_outlives_whoever_started_it_mends_itself_and_ends_when_it_is_stopped():
    address = ray.get_runtime_context().gcs_address
    chosen = ["service.name=lasting", "service.actors=1", "tasks.domain=mock"]
    started = process("service", "start", "--address", address, *(word for each in chosen for word in ("--set", each)))
    assert started.returncode == 0, started.stderr
    assert "Service lasting is ready; environment actors: 1, slots: 16." in started.stdout
    assert f"rollout-service collect --address {address} --set service.name=lasting" in started.stdout

    ray.kill(ray.get_actor("lasting-environment-0", namespace="rollout_service"))
    with RolloutClient("auto", config=settings(service__name="lasting"), start=False) as client:
        assert len(client.collect(2, progress=False)) == 2
        status = command("service", "status", "lasting", *HERE)
    assert status.returncode == 0, status.stderr
    for text in ("state running", "ends when it is stopped", "2 finished", "1 ready, 1 lost", "heard 0 s ago"):
        assert text in said(status.stdout)
    again = command("service", "start", *HERE, "--set", "service.name=lasting")
    assert again.returncode == 2
    assert "A service named 'lasting' runs on this cluster already" in again.stderr

    stopped = command("service", "stop", "lasting", *HERE)
    assert stopped.returncode == 0, stopped.stderr
    assert "Service lasting was stopped: 3 actors, Serve application lasting-policy." in stopped.stdout
    assert services.find("lasting", "rollout_service") is None
    assert command("service", "stop", "lasting", *HERE).returncode == 2


def test_what_a_dead_service_left_is_listed_with_the_command_that_removes_it(client):
    class Idle:  # the actor of a service that is dead otherwise; one of this module, Ray could not import
        pass

    options = {"name": "left-fleet", "namespace": "rollout_service", "num_cpus": 0, "lifetime": "detached"}
    ray.get(ray.remote(Idle).options(**options).remote().__ray_ready__.remote())
    listed = command("service", "list", *HERE)
    assert listed.returncode == 0, listed.stderr
    assert f"shared rollout_service running with its client {client._id} 1 16 0" in said(listed.stdout)
    assert "left rollout_service dead – – –" in said(listed.stdout)
    assert "Service left is dead and left 1 actors. Remove it with: rollout-service service stop left" in listed.stderr
    assert command("service", "status", "left", *HERE).returncode == 1
    refused = command("service", "start", *HERE, "--set", "service.name=left")
    assert refused.returncode == 2
    assert "A dead service named 'left' left something on this cluster: 1 actors. Remove it with" in refused.stderr
    assert command("service", "stop", "left", *HERE).returncode == 0
    assert services.find("left", "rollout_service") is None


def test_a_watched_service_is_shown_until_ctrl_c_with_the_exit_code_of_its_status(client, monkeypatch):
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(service_table, "time", SimpleNamespace(sleep=interrupted))
    watched = command("service", "status", "shared", *HERE, "--watch")
    assert watched.returncode == 0, watched.stderr
    assert "state running" in said(watched.stdout)
    assert command("service", "status", "nobody", *HERE, "--watch").returncode == 2
