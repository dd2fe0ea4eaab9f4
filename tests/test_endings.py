"""No way in which a client's process can end leaves anything of it on the cluster.

All processes are started, and then ended, at once: what takes long here is waiting.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray

import rollout_service.services as services
from rollout_service.client import RolloutClient
from tests.support.commands import environment
from tests.support.episodes import settings
from tests.support.services import wait_until

WAYS = {
    "normal": signal.SIGUSR1,
    "exception": signal.SIGUSR1,
    "terminated": signal.SIGTERM,
    "killed": signal.SIGKILL,
    "stopped": signal.SIGSTOP,
}
"""The ways, and the signal by which `tests.support.clients` is made to end so."""

HOST = "endings-host"
"""A service whose owner is killed when it was up, after its guests."""

STARTING = "endings-starting"
"""A service whose owner is halted while it starts: its job goes on, so that only the lease can end it."""


@dataclass
class Left:
    """What was left in the end."""

    collections: set[str]
    """Ways of the guests whose collections still ran."""
    services: set[str]
    cpus: float
    """CPUs that were still held."""


@pytest.fixture(scope="module")
def left(cluster: None) -> Iterator[Left]:
    """Ends the guests of a running service; halts the owner of a starting one; kills the running one's."""
    address, cpus = ray.get_runtime_context().gcs_address, ray.available_resources()["CPU"]
    guests = {f"{HOST}:{way}:guest": way for way in WAYS}
    owners = {f"{STARTING}:stopped:owner": "stopped"}
    host = f"{HOST}:whole:owner"
    with _program(address, [host, *guests, *owners]) as pids:
        with RolloutClient(address, config=settings(service__name=HOST)) as client:

            def running() -> set[str]:
                ids = [collection["client"] for collection in client.status()["collections"].values()]
                return {way for job, way in guests.items() if any(f"-{pids[job]}-" in name for name in ids)}

            wait_until(lambda: len(_parts()) == len(owners) + 1 and all(_parts().values()), 200.0)
            assert running() == set(WAYS)
            for job, way in (guests | owners).items():
                os.kill(pids[job], WAYS[way])
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not running() and set(_parts()) == {HOST}, 60.0)
            collections = running()
        os.kill(pids[host], signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not _parts() and ray.available_resources()["CPU"] == cpus, 60.0)
        yield Left(collections, set(_parts()), cpus - ray.available_resources()["CPU"])


@contextlib.contextmanager
def _program(address: str, jobs: list[str]) -> Iterator[dict[str, int]]:
    """Runs `tests.support.clients`. Gives the process of each job, once it has begun."""
    told, telling = os.pipe()  # Ray prints warnings of its own on stdout
    command = [sys.executable, "-m", "tests.support.clients", str(telling), address, *jobs]
    pids: dict[str, int] = {}
    options: dict[str, Any] = {"pass_fds": [telling], "stdout": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, env=environment(), **options) as program:
        os.close(telling)
        try:
            with open(told) as lines:
                while len(pids) < len(jobs):
                    job, pid = lines.readline().split()
                    assert int(pid), f"{job} failed"
                    pids[job] = int(pid)
            yield pids
        finally:
            os.killpg(program.pid, signal.SIGKILL)


def _parts() -> dict[str, bool]:
    """The services of this module that have a part on the cluster, and whether all parts of it have begun."""
    ours = [parts for parts in services.find_all() if parts.name.startswith("endings-")]
    return {parts.name: len(parts.actors) == 3 and bool(parts.applications) for parts in ours}


@pytest.mark.parametrize("way", WAYS)
def test_a_client_s_process_leaves_no_collection_however_it_ends(left, way):
    assert way not in left.collections


def test_an_owner_that_is_halted_while_its_service_starts_leaves_nothing_of_it(left):
    assert STARTING not in left.services


def test_an_owner_that_is_killed_while_its_service_runs_leaves_no_actor_replica_or_cpu(left):
    assert (left.services, left.cpus) == (set(), 0.0)
