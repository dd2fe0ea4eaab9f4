"""Twenty schedules of faults on one service: each history passes the checker. `make chaos` runs many more, and kills
what tests share, such as Serve's controller and the cluster."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from rollout_service.client import RolloutClient
from tests.chaos import history
from tests.chaos.checker import check
from tests.chaos.client import take
from tests.chaos.inject import Injector
from tests.chaos.schedule import Fault, Schedule, make
from tests.chaos.service import SCRIPTED, SETTINGS
from tests.chaos.user import UserEndpoint
from tests.support.services import start

NAME = "under-fire"

PROCESSES = {
    "actor": f"{NAME}-environment-",
    "replica": f"SERVE_REPLICA::{NAME}-policy#",
    "coordinator": f"{NAME}-coordinator",
}
"""How the names of a target's actors begin."""

EPISODES = 8

HALTS = [f"{target} halted" for target in PROCESSES for _ in range(2)]
FAULTS = ["user"] * 9 + ["actor", "coordinator", "replica"] + HALTS
"""What happens in each schedule but the last two. A kill costs seconds of imports, so there are few."""


def schedules() -> Iterator[Schedule]:
    """Twenty: those of `FAULTS`, and two with faults of several kinds."""
    rng = random.Random("suite")
    for seed, kind in enumerate(FAULTS):
        target, _, is_halted = kind.partition(" ")
        own = Fault(target, rng.randint(1, 3), how="STOP", seconds=rng.choice((0.3, 1.0)))
        faults = (own if is_halted else Fault(target, own.after),)
        if target == "user":
            bursts = make("user", seed, EPISODES).faults  # short ones: the pauses before retries grow
            faults = tuple(replace(fault, requests=min(fault.requests, 2)) for fault in bursts)
        yield Schedule(kind, seed, EPISODES, 2, seed % 2, 0.05, faults)
    burst = Fault("user", 4, how="status 503", requests=4)
    halted = [Fault(target, 3, how="STOP", seconds=0.5) for target in ("replica", "actor")]
    yield Schedule("mixed", 0, EPISODES, 2, 0, 0.05, (Fault("actor", 2, how="STOP", seconds=0.5), burst, halted[0]))
    yield Schedule("mixed", 1, EPISODES, 2, 1, 0.05, (*halted, burst))


def processes(target: str) -> list[int]:
    named = sorted(ray.util.list_named_actors(all_namespaces=True), key=lambda actor: str(actor["name"]))
    handles = [
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in named
        if actor["name"].startswith(PROCESSES[target])
    ]
    return ray.get([handle.__ray_call__.remote(lambda _: os.getpid()) for handle in handles])


def carry_out(
    service: RolloutClient, user: UserEndpoint, schedule: Schedule, log: Path
) -> tuple[list[history.Delivery], int]:
    """The deliveries, and the number of faults that came too late: groups come together, so the last may be there
    before a fault that was placed between them."""
    user.begin(schedule)
    injector = Injector(schedule.faults, processes, user.inject)
    client = threading.Thread(target=take, args=(service, schedule, log))
    client.start()
    while client.is_alive():
        injector.step(history.count(log), time.time())
        client.join(0.02)
    injector.finish()
    return history.read(log), injector.missed


@pytest.mark.timeout(400)
def test_twenty_schedules_of_faults_deliver_each_episode_once_and_as_in_a_calm_run(cluster, tmp_path):
    overrides = SETTINGS | SCRIPTED | {"service__actors": 1, "policy__replicas": 1, "user__timeout_seconds": 0.7}
    overrides |= {"user__max_retry_wait_seconds": 0.1, "service__journal": str(tmp_path / "journal")}
    del overrides["service__name"]
    calm: dict[int, list[history.Delivery]] = {}
    failed = placed = missed = 0
    with UserEndpoint() as user, start(NAME, **overrides, user__base_url=user.url) as service:
        for number, schedule in enumerate(schedules(), 1):
            collection = schedule.selection
            if collection not in calm:
                calm[collection], _ = carry_out(service, user, schedule.calm, tmp_path / f"calm-{collection}.jsonl")
            came, late = carry_out(service, user, schedule, tmp_path / f"{number}.jsonl")
            verdict = check(calm[collection], came)
            assert verdict.violations == (), schedule
            assert verdict.delivered + verdict.reported == EPISODES
            failed += user.failed
            placed += len(schedule.faults)
            missed += late
    assert number == 20
    deliveries = [delivery for run in calm.values() for delivery in run]
    assert len({delivery.reward for delivery in deliveries}) == 2, "a reward that is lost or mixed up would show"
    assert len({delivery.tokens for delivery in deliveries}) > 4
    assert failed > 25
    assert missed < placed / 3
