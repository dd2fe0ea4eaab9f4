"""Fixtures with a real Ray cluster and real services on it. Starting them takes seconds, so tests share them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray import serve

import tests.support.workers.cluster as workers
from deploy.replica import PolicyReplica
from rollout_service.client import RolloutClient
from rollout_service.cluster import SERVE_CONTROLLER_ENVIRONMENT
from tests.support.episodes import settings
from tests.support.ports import free_port

HTTP_PORT = free_port()
"""Where Serve listens on the shared cluster."""


@pytest.fixture(scope="session")
def forks() -> Iterator[dict[str, str]]:
    """What a program has in its environment that starts a cluster of its own, see `worker_scripts`."""
    with workers.forks() as variables:
        yield variables


@pytest.fixture(scope="session")
def cluster(forks: dict[str, str]) -> Iterator[None]:
    """This process is connected to a Ray cluster of its own, with more CPUs on paper than the machine has: several
    services share it. Serve runs with HTTP there, for the one service that asks for it. As in a service's own Ray, no
    process reports its tasks to the head."""
    options = {"num_cpus": 16, "namespace": "rollout_service", "include_dashboard": False, "log_to_driver": False}
    options |= {"_system_config": {"task_events_report_interval_ms": 0}}
    os.environ |= SERVE_CONTROLLER_ENVIRONMENT
    with workers.cluster(forks, **options):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": HTTP_PORT})
        yield


def start(name: str, **overrides: Any) -> RolloutClient:
    """A service of its own on the shared cluster. Close it: its actors hold CPUs."""
    overrides = {"service__actors": 1, "tasks__domain": "mock"} | overrides
    return RolloutClient(config=settings(service__name=name, **overrides))


def wait_until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def client(cluster: None) -> Iterator[RolloutClient]:
    """The embedded default on the mock domain."""
    with start("shared") as service:
        yield service


class TellingReplica(PolicyReplica):
    """A replica that tells of its environment. It is here because Serve's processes import this module."""

    async def variable(self, name: str) -> str | None:
        return os.environ.get(name)


class FailingReplica(PolicyReplica):
    """A replica whose engine fails once, deep inside, in its first turn."""

    async def __init__(self, *args: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(*args)
        engine: Any = self._engine
        written = engine._written

        def overheated(step: Any) -> Any:
            engine._written = written
            raise RuntimeError("the device is too hot")

        engine._written = overheated
