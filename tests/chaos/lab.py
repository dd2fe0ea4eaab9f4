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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.schedule import Schedule
from tests.chaos.service import SETTINGS

_START_SECONDS = 240.0
_STARTS = 3

_TITLES = {
    "actor": "ray::EnvironmentActor",
    "replica": "ray::ServeReplica",
    "controller": "ray::ServeController",
    "coordinator": "ray::Coordinator",
    "fleet": "ray::Fleet",
}
"""How the titles of a target's processes begin."""


_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # the client shows the token that the cluster was started with
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
"""Of both processes. One that lost its cluster waits 60 s for it by default, which would be most of a run."""


class Lab:
    """Starts, finds and ends the processes. Both are started when they are needed first, and again after they died."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """
        Args:
            folder: where the processes' own output goes.
            settings: what the service has beside, or in place of, `SETTINGS`.
        """
        self._folder = folder
        self._settings = SETTINGS | settings
        self._service: _Process | None = None
        self._client: _Process | None = None
        self.session = ""
        """Ray's session folder, with the logs."""

    def order(self, schedule: Schedule, log: Path) -> None:
        """Let the client take the collection; starts what does not run."""
        if self._service is None or not self._service.runs:
            self._start()
        if self._client is None or not self._client.runs:
            self._client = _Process("tests.chaos.client", self._folder, self._address)
            self._client.answer(_START_SECONDS)
        self._client.say({"schedule": schedule.to_json(), "log": str(log)})

    def _start(self) -> None:
        """Start the service. Ray gives a start up after 30 s, which a busy machine may need: then it is tried again."""
        for left in reversed(range(_STARTS)):
            self._service = _Process("tests.chaos.service", self._folder, json.dumps(self._settings))
            try:
                ready = self._service.answer(_START_SECONDS)
            except RuntimeError:
                if not left:
                    raise
                continue
            self._address, self.session = ready["address"], ready["session"]
            return

    def ended(self) -> str | None:
        """How the order ended: "" well, else with this error; None: it has not ended."""
        assert self._client is not None
        if (said := self._client.heard()) is not None:
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


class _Process:
    """A Python process that reads and writes lines of JSON."""

    def __init__(self, module: str, folder: Path, *arguments: str) -> None:
        self._errors = folder / f"{module.rpartition('.')[2]}.log"
        command = [sys.executable, "-m", module, *arguments]
        with open(self._errors, "ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=os.environ | _ENVIRONMENT
            )
        self.pid = self._process.pid
        self._said: list[dict[str, Any]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # what a library prints
                self._said.append(json.loads(line))

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def heard(self) -> dict[str, Any] | None:
        """The next answer, if there is one."""
        return self._said.pop(0) if self._said else None

    def answer(self, seconds: float) -> dict[str, Any]:
        """Wait for the next answer."""
        deadline = time.monotonic() + seconds
        while (said := self.heard()) is None:
            if not self.runs or time.monotonic() > deadline:
                said = self._errors.read_text()[-2000:]
                raise RuntimeError(f"{self._process.args} did not come up:\n{said}")
            time.sleep(0.05)
        return said

    def say(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it just died, as `runs` will say
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """End it in order: its standard input ends."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._process.kill()
        self.reap()

    def reap(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return ""
