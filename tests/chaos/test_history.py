"""A service on the shared cluster under a few faults: its history passes the checker. `make chaos` runs many more."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import ray

from rollout_service.client import RolloutClient
from tests.chaos import history
from tests.chaos.checker import check
from tests.chaos.client import take
from tests.chaos.inject import Injector
from tests.chaos.schedule import Fault, Schedule
from tests.chaos.service import SETTINGS
from tests.chaos.user import UserEndpoint
from tests.support.services import start

NAME = "under-fire"

PROCESSES = {"actor": f"{NAME}-environment-", "replica": f"SERVE_REPLICA::{NAME}-policy#"}
"""How the names of a target's actors begin."""


def processes(target: str) -> list[int]:
    named = sorted(ray.util.list_named_actors(all_namespaces=True), key=lambda actor: str(actor["name"]))
    handles = [
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in named
        if actor["name"].startswith(PROCESSES[target])
    ]
    return ray.get([handle.__ray_call__.remote(lambda _: os.getpid()) for handle in handles])


def carry_out(service: RolloutClient, user: UserEndpoint, schedule: Schedule, log: Path) -> list[history.Delivery]:
    user.begin(schedule)
    injector = Injector(schedule.faults, processes, user.inject)
    client = threading.Thread(target=take, args=(service, schedule, log))
    client.start()
    while client.is_alive():
        injector.step(len(history.read(log)), time.time())
        client.join(0.02)
    injector.finish()
    assert (len(injector.came), injector.missed) == (len(schedule.faults), 0)
    return history.read(log)


def test_a_collection_under_faults_delivers_each_episode_once_and_as_in_a_calm_run(cluster, tmp_path):
    faults = (
        Fault("user", 2, how="truncated", requests=3),
        Fault("actor", 4),
        Fault("user", 6, how="status 503", requests=4),
        Fault("replica", 8),
        Fault("actor", 10, how="STOP", seconds=0.5, pick=1),
    )
    schedule = Schedule("suite", 0, episodes=24, group_size=2, selection=1, noise=0.05, faults=faults)
    with UserEndpoint() as user:
        one = {"service__actors": 1, "policy__replicas": 1}  # fewer processes that import for seconds
        overrides = SETTINGS | one | {"service__name": NAME, "user__base_url": user.url}
        with start(overrides.pop("service__name"), **overrides) as service:
            calm = carry_out(service, user, schedule.calm, tmp_path / "calm.jsonl")
            came = carry_out(service, user, schedule, tmp_path / "deliveries.jsonl")
    verdict = check(calm, came)
    assert verdict.violations == ()
    assert verdict.delivered + verdict.reported == schedule.episodes
    assert len({delivery.reward for delivery in calm}) == 2, "a reward that is lost or mixed up would show"
    assert len({delivery.tokens for delivery in calm}) > 6
    assert user.failed >= 7
