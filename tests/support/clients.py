"""A program whose clients can be ended in every way: `python -m tests.support.clients PIPE ADDRESS`.

It begins a job for each line of its input. A job is `NAME:WAY:ROLE`. Each has a process of its own, forked so that
all share what was imported. A `host` starts a service NAME with a policy replica. An `owner` starts one without, and
opens a collection there. A `starter` is an owner that is told of before its service is up. A `guest` attaches to the
service NAME and opens a collection. Each writes `JOB PID` into the PIPE once it has begun, or `JOB 0` when it has
failed. On SIGUSR1 it ends: in the way `normal` its main thread returns, in any other it raises.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.workers import random_ids

with random_ids.unmade():
    import transformers.models.auto.tokenization_auto  # noqa: F401  # these three are imported here, once

    import deploy.application
    import deploy.service  # noqa: F401
    import rollout_service.assets
    import rollout_service.cluster as cluster
    import rollout_service.tau2.tasks
    from rollout_service.client import RolloutClient
    from tests.support.episodes import settings

_ATTACH_SECONDS = 100.0

_LEASE_SECONDS = 8.0

_REPLICA = {"policy__cpus_per_replica": 0.25, "policy__script": {"latency": {"mean": 1.0}}}
"""A policy whose episodes take long."""

NO_REPLICA = {
    "policy__engine": "http",
    "policy__url": "http://127.0.0.1:9",
    "policy__tokenizer": str(Path(rollout_service.assets.__file__).parent / "tokenizer"),
    "policy__context_length": 4096,
}
"""A policy that is never there, which costs no replica. A turn waits for it."""


def own(address: str, name: str, policy: dict[str, Any]) -> RolloutClient:
    """Starts a service."""
    size = {"service__actors": 1, "service__slots": 4, "service__lease_seconds": _LEASE_SECONDS}
    return RolloutClient(address, config=settings(service__name=name, tasks__domain="mock", **size, **policy))


def visit(address: str, name: str) -> object:
    """Attaches as soon as the service begins, and opens a collection that takes long."""
    config = settings(service__name=name)
    cluster.connect(address, config.service.namespace)
    cluster.find(cluster.fleet_name(name), config.service.namespace, _ATTACH_SECONDS)  # it comes after the coordinator
    client = RolloutClient(address, config=config, start=False)
    return client, client.stream(1000)


def begin(address: str, name: str, role: str) -> object:
    """What a job of this role begins with."""
    if role == "guest":
        return visit(address, name)
    if role == "host":
        return own(address, name, _REPLICA)
    client = own(address, name, NO_REPLICA)
    return client, client.stream(1000)


def work(pipe: int, address: str, job: str) -> None:
    """One of the processes."""
    name, way, role = job.split(":")
    told = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: told.set())
    held: list[object] = []

    def hold() -> None:
        try:
            held.append(begin(address, name, role))
        except BaseException:
            os.write(pipe, f"{job} 0\n".encode())
            raise

    beginning = threading.Thread(target=hold, daemon=True)
    beginning.start()
    if role != "starter":
        beginning.join()
    os.write(pipe, f"{job} {os.getpid()}\n".encode())
    told.wait()
    if way != "normal":
        raise RuntimeError(f"the client of {job} ends so")


def main() -> None:
    pipe, address = sys.argv[1:]
    gc.freeze()
    for job in sys.stdin:
        if os.fork() == 0:
            work(int(pipe), address, job.strip())
            return


if __name__ == "__main__":
    main()
