"""Imports what workers need, then listens at a path and forks a worker for each request. Run it with the path as its
argument.

Invariant: a fork has the arguments, the environment, the folder and the output of the process that asked for it. Ray
and what imports it read the environment at their import, so they are imported by a second template, which is a fork of
the first one and serves workers of one cluster, one job and one environment. Fork and asker end together, whichever
ends first, and the asker is told how the fork ended. All end with the input of this program.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from tests.support.workers import spare

FIRST = ("pyarrow", "pandas", "litellm", "torch", "transformers.models.auto.tokenization_auto",
         "transformers.models.qwen3.modeling_qwen3", "fastapi", "rollout_service.tau2.episode")  # fmt: skip
"""Imported once, without Ray."""

SECOND = ("ray.serve._private.controller", "ray.serve._private.replica", "ray.serve._private.proxy",
          "actors.coordinator", "actors.fleet", "actors.environment", "rollout_service.policy.serve", "deploy.replica",
          "deploy.engines.transformers", "tests.support.services")  # fmt: skip
"""Imported by each second template."""

SGLANG = ("deploy.engines.launch", "sglang.srt.entrypoints.engine", "sglang.srt.managers.scheduler")
"""Imported besides by one whose workers run SGLang, see `tests.support.sglang`."""

_PR_SET_PDEATHSIG = 1

LONGEST = 1 << 17
"""Bytes of a request."""


def main() -> None:
    (path,) = sys.argv[1:]
    gc.disable()  # imports make objects by the million and no garbage
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}  # as Ray does for a worker with one CPU
    os.environ |= threads
    _load(FIRST)
    assert "ray" not in sys.modules, "it would have the wrong environment"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"{path}.unready")
    listening.listen(100)
    os.rename(f"{path}.unready", path)
    _First(listening).run()


def _load(modules: tuple[str, ...]) -> None:
    for name in modules:
        importlib.import_module(name)


def _runs_sglang(own: dict[str, str]) -> bool:
    return "SGLANG_USE_CPU_ENGINE" in own


def _load_sglang(folders: list[str]) -> None:
    import ray._raylet
    import setproctitle

    setproctitle.setproctitle = ray._raylet.setproctitle  # of two that write a process's title only one finds the place
    sys.path[:0] = folders
    _load(("sitecustomize", *SGLANG))


class _First:
    """Passes each request on to the second template that it needs."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        self._second: dict[str, socket.socket] = {}

    def run(self) -> NoReturn:
        while True:
            for key, _ in self._selector.select():
                if key.fd == 0:
                    os.killpg(0, signal.SIGKILL)
                asker, _ = self._listening.accept()
                request, descriptors, _, _ = socket.recv_fds(asker, LONGEST, 3)
                if request:
                    template = self._template(request, asker, descriptors)
                    socket.send_fds(template, [request], [asker.fileno(), *descriptors])
                asker.close()
                for descriptor in descriptors:
                    os.close(descriptor)

    def _template(self, request: bytes, asker: socket.socket, descriptors: list[int]) -> socket.socket:
        """The one for the request. If it is begun now, it closes what came with the request: who reads a program's
        output waits until nobody can write there."""
        known = json.loads(request)
        variables: dict[str, str] = known["variables"]
        cluster_and_job = [variables.get(name) for name in ("RAY_RAYLET_PID", "RAY_JOB_ID")]
        kind = json.dumps([*cluster_and_job, known["own"]], sort_keys=True)
        if kind not in self._second:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork() == 0:
                for held in (ours, asker, self._listening, self._selector, *self._second.values()):
                    held.close()
                for descriptor in descriptors:
                    os.close(descriptor)
                os.environ.clear()
                os.environ.update(variables)
                from tests.support.workers import random_ids  # it imports Ray

                with random_ids.unmade():
                    _load(SECOND)
                    if _runs_sglang(known["own"]):
                        _load_sglang(known["own"]["PYTHONPATH"].split(os.pathsep))
                gc.freeze()
                _Second(theirs).run()
            theirs.close()
            self._second[kind] = ours
        return self._second[kind]


class _Second:
    """Forks workers."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ, self._fork)
        self._open: set[int] = set()
        """Further descriptors that are no fork's."""

    def run(self) -> NoReturn:
        while True:
            key, _ = self._selector.select()[0]  # one at a time, because it may close what the next one is about
            key.data()

    def _fork(self) -> None:
        request, (asker, *standard), _, _ = socket.recv_fds(self._requests, LONGEST, 4)
        pid = os.fork()
        if pid == 0:
            # Not by their numbers: as a fork exits, Python closes what it takes for open, and by then the numbers are
            # those of Ray's own descriptors. Ray's threads would wait for nothing, without end.
            self._requests.close()
            self._selector.close()
            for descriptor in (*self._open, asker):
                os.close(descriptor)
            _become(standard, json.loads(request))
        for descriptor in standard:
            os.close(descriptor)
        process = os.pidfd_open(pid)
        self._open |= {process, asker}

        def asker_ended() -> None:
            self._selector.unregister(asker)
            os.kill(pid, signal.SIGKILL)

        def fork_ended() -> None:
            self._selector.unregister(process)
            _, status = os.waitpid(pid, 0)
            if asker in self._selector.get_map():
                self._selector.unregister(asker)
                with contextlib.suppress(OSError):  # it may end just now
                    os.write(asker, bytes([os.waitstatus_to_exitcode(status) % 256]))
            for descriptor in (process, asker):
                self._open.remove(descriptor)
                os.close(descriptor)

        ends: dict[int, Callable[[], None]] = {process: fork_ended, asker: asker_ended}
        for descriptor, end in ends.items():
            self._selector.register(descriptor, selectors.EVENT_READ, end)


def _become(standard: list[int], request: dict[str, object]) -> NoReturn:
    """Be the worker."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # one that hangs as it exits ends with the template
    os.setpgid(0, 0)  # Ray ends the group of a worker that ended
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["variables"])  # type: ignore[call-overload]
    os.chdir(str(request["folder"]))
    sys.argv = request["arguments"]  # type: ignore[assignment]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    np.random.seed()
    gc.enable()
    if _runs_sglang(request["own"]):  # type: ignore[arg-type]
        spare.keep()  # it becomes the scheduler
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main()
