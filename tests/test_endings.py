"""No way in which a client's process can end leaves anything of it on the cluster: no collection, and of a service that
it started no actor, process, application or CPU.

The guests of a service, and then the owners of services, are ended at once. No more than two services start at a time,
because six together starve on two cores. Only one service has a policy replica, which costs most of a start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import psutil
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
"""A service with a replica, whose owner is halted after the guests of the service were ended."""

OWNED = {way: f"endings-{way}" for way in WAYS} | {"stopped": HOST}
"""The service whose owner ends so while it runs."""

STARTING = "endings-starting"
"""A service whose owner is halted while it starts: its job goes on, so that only the lease can end it."""


@dataclass
class Left:
    """What was left in the end."""

    guests: set[str]
    """Ways of the guests whose collections still ran."""
    services: set[str]
    processes: list[str]
    """Titles of the actors' and replicas' processes that still ran."""
    cpus: float
    """CPUs that were still held."""


@pytest.fixture(scope="module")
def left(cluster: None) -> Iterator[Left]:
    """Ends the owners of running services, the owner of a starting one, and the guests of the host; then halts its
    owner."""
    address, cpus = ray.get_runtime_context().gcs_address, ray.available_resources()["CPU"]
    before = _processes()
    guests = {f"{HOST}:{way}:guest": way for way in WAYS}
    owners = {f"{service}:{way}:owner": way for way, service in OWNED.items() if service != HOST}
    host, starter = f"{HOST}:stopped:host", f"{STARTING}:stopped:starter"
    with _program(address) as begin:
        pids = begin([host, starter, *guests])
        with RolloutClient(address, config=settings(service__name=HOST)) as client:

            def running() -> set[str]:
                ids = [collection["client"] for collection in client.status()["collections"].values()]
                return {way for job, way in guests.items() if any(f"-{pids[job]}-" in name for name in ids)}

            _until_up(HOST, STARTING)
            assert running() == set(WAYS)
            for job, way in [*guests.items(), (starter, "stopped")]:
                os.kill(pids[job], WAYS[way])
            for pair in (list(owners)[:2], list(owners)[2:]):
                pids |= begin(pair)
                _until_up(*(job.split(":")[0] for job in pair))
            for job, way in owners.items():
                os.kill(pids[job], WAYS[way])
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not running() and set(_actors()) == {HOST}, 60.0)
            collections = running()
        os.kill(pids[host], WAYS["stopped"])
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not _actors() and ray.available_resources()["CPU"] == cpus, 60.0)
            wait_until(lambda: not _processes() - before, 30.0)
        titles = [process.name() for process in _processes() - before]
        yield Left(collections, set(_actors()), titles, cpus - ray.available_resources()["CPU"])


@contextlib.contextmanager
def _program(address: str) -> Iterator[Callable[[Iterable[str]], dict[str, int]]]:
    """Runs `tests.support.clients`. Gives what begins jobs, and gives the process of each once it has begun."""
    told, telling = os.pipe()  # Ray prints warnings of its own on stdout
    command = [sys.executable, "-m", "tests.support.clients", str(telling), address]
    options: dict[str, Any] = {"pass_fds": [telling], "stdout": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, text=True, **options) as program:
        os.close(telling)
        try:
            with open(told) as lines:
                yield lambda jobs: _begun(program, lines, list(jobs))
        finally:
            os.killpg(program.pid, signal.SIGKILL)


def _begun(program: subprocess.Popen[str], lines: TextIO, jobs: list[str]) -> dict[str, int]:
    """Begins the jobs. Returns when all have."""
    assert program.stdin is not None
    program.stdin.writelines(f"{job}\n" for job in jobs)
    program.stdin.flush()
    pids: dict[str, int] = {}
    while len(pids) < len(jobs):
        job, pid = lines.readline().split()
        assert int(pid), f"{job} failed"
        pids[job] = int(pid)
    return pids


def _until_up(*names: str) -> None:
    """Waits until each of the services has its three actors."""
    wait_until(lambda: all(_actors().get(name) == 3 for name in names), 200.0)


def _actors() -> dict[str, int]:
    """The services of this module that have a part on the cluster, and how many actors each has."""
    ours = [parts for parts in services.find_all() if parts.name.startswith("endings-")]
    return {parts.name: len(parts.actors) for parts in ours}


def _processes() -> set[psutil.Process]:
    """The processes of actors and replicas on this machine's cluster."""
    kinds = ("ray::Coordinator", "ray::Fleet", "ray::EnvironmentActor", "ray::ServeReplica")
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(kinds):
                found.add(process)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_client_s_process_leaves_no_collection_however_it_ends(left, way):
    assert way not in left.guests


@pytest.mark.parametrize("way", WAYS)
def test_an_owner_leaves_nothing_of_its_service_however_it_ends(left, way):
    assert OWNED[way] not in left.services


def test_an_owner_that_is_halted_while_its_service_starts_leaves_nothing_of_it(left):
    assert STARTING not in left.services


def test_no_actor_process_application_or_cpu_of_any_of_them_is_left(left):
    assert (left.services, left.processes, left.cpus) == (set(), [], 0.0)
