"""The lab: a service with a Ray cluster of its own, and a client in another process, on this machine.

Invariant: this process is connected to no cluster, so nothing that is killed takes it along. The processes of a target
are looked for among those that the lab started, so nothing else on the machine is hit.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.process import Process
from tests.chaos.schedule import Schedule
from tests.chaos.service import SETTINGS

_START_SECONDS = 240.0
_STARTS = 3

_TITLES = {
    "actor": "ray::EnvironmentActor",
    "replica": "ray::ServeReplica",
    "engine": "sglang::",
    "controller": "ray::ServeController",
    "coordinator": "ray::Coordinator",
    "fleet": "ray::Fleet",
}
"""How the titles of a target's processes begin."""


_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # the client shows the token that the cluster was started with
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # who lost the cluster waits 60 s for it otherwise
    # On a machine with many cores, Ray would start an idle worker for each of them, in each lab.
    "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 4, "object_store_memory": 400_000_000}),
}
"""Of both processes."""


class Lab:
    """Starts, finds and ends the processes. Both are started when they are needed first, and again after they died."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """
        Args:
            folder: where the processes' own output goes.
            settings: what the service has beside `SETTINGS`.
        """
        self._folder = folder
        self._settings = SETTINGS | settings
        self._service: Process | None = None
        self._client: Process | None = None
        self.session = ""
        """Ray's session folder, with the logs."""

    def order(self, schedule: Schedule, log: Path) -> None:
        """Let the client take the collection; starts what does not run."""
        if self._service is None or not self._service.runs:
            self._start()
        if self._client is None or not self._client.runs:
            self._client = Process("tests.chaos.client", self._folder, self._address, environment=_ENVIRONMENT)
            self._client.answer(_START_SECONDS)
        self._client.say({"schedule": schedule.to_json(), "log": str(log)})

    def _start(self) -> None:
        """Start the service. Ray gives a start up after 30 s, which a busy machine may need: then it is tried again."""
        for left in reversed(range(_STARTS)):
            self._service = Process(
                "tests.chaos.service", self._folder, json.dumps(self._settings), environment=_ENVIRONMENT
            )
            try:
                ready = self._service.answer(_START_SECONDS)
            except RuntimeError:
                if not left:
                    raise
                continue
            self._address, self.session = ready["address"], ready["session"]
            return

    def ended(self) -> str | None:
        """How the order ended: "" well, else with this error; None: it has not ended.

        Raises:
            RuntimeError: it could not begin, as the service is not whole.
        """
        assert self._client is not None
        if (said := self._client.heard()) is not None:
            if said["unready"]:
                raise RuntimeError(said["ended"])
            return str(said["ended"])
        return None if self._client.runs else "the client's process ended"

    def processes(self, target: str) -> list[int]:
        """Process ids of a target of `tests.chaos.schedule.TARGETS`, the oldest first."""
        if target == "client":
            return [self._client.pid] if self._client is not None and self._client.runs else []
        family = list(self._family())
        if target == "cluster":
            return [process.pid for process in family]
        found = [
            (process.create_time(), process.pid) for process in family if _title(process).startswith(_TITLES[target])
        ]
        return [pid for _, pid in sorted(found)]

    def kill(self, *targets: str) -> None:
        """Kill all processes of the targets."""
        for pid in [pid for target in targets for pid in self.processes(target)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (self._client, self._service):
            if process is not None:
                process.reap()

    def close(self) -> None:
        """End client and service."""
        for process in (self._client, self._service):
            if process is not None:
                process.end()
        self.kill("cluster")

    def _family(self) -> Iterator[psutil.Process]:
        """The service's process and all that it started. Without it nothing is left: on Linux Ray's processes end with
        the one that started them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._service is not None and self._service.runs:  # else its id may be another process's by now
                keeper = psutil.Process(self._service.pid)
                yield from keeper.children(recursive=True)
                yield keeper


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return ""
