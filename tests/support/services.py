"""Fixtures with a real Ray cluster and real services on it. Starting them takes seconds, so tests share them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from deploy.replica import PolicyReplica
from rollout_service.client import RolloutClient
from tests.support.episodes import settings


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """This process is connected to a Ray cluster of its own, with more CPUs on paper than the machine has: several
    services share it."""
    ray.init("local", num_cpus=16, namespace="rollout_service", include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def start(name: str, **overrides: Any) -> RolloutClient:
    """A service of its own on the shared cluster. Close it: its actors hold CPUs."""
    overrides = {"service__actors": 1, "tasks__domain": "mock"} | overrides
    return RolloutClient(config=settings(service__name=name, **overrides))


@pytest.fixture(scope="module")
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
