"""Ray clusters whose workers begin as forks of a template: that of the tests, and those that programs start."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray._private.parameter import RayParams

from rollout_service.cluster import SERVE_ENVIRONMENT
from tests.support import sglang


@contextlib.contextmanager
def forks() -> Iterator[dict[str, str]]:
    """Runs a template. Gives what a program must have in its environment for `worker_scripts`."""
    folder = tempfile.mkdtemp(prefix="workers-")
    path = f"{folder}/template"
    ordinary = Path(ray.__file__).parent / "_private" / "workers"
    own = [{}, SERVE_ENVIRONMENT, SERVE_ENVIRONMENT | sglang.ENVIRONMENT]
    asked: dict[str, Any] = {"path": path, "own": own}
    asked |= {name: str(ordinary / f"{name}.py") for name in ("setup_worker", "default_worker")}
    try:
        with _template(path):
            yield {"TESTS_WORKER_TEMPLATE": json.dumps(asked)}
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def cluster(variables: dict[str, str], **options: Any) -> Iterator[None]:
    """Starts Ray with these options of `ray.init`, and ends it.

    Args:
        variables: as `forks` gives them.
    """
    with mock.patch.dict(os.environ, variables):  # to the end: Ray adds what programs need that join the cluster
        with worker_scripts():
            _start_ray(options)
        yield
        ray.shutdown()


def _start_ray(options: dict[str, Any]) -> None:
    """On a busy machine Ray gives up its own start, because a part of it took too long."""
    for attempt in range(3):
        try:
            ray.init("local", **options)
            return
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise


@contextlib.contextmanager
def worker_scripts() -> Iterator[None]:
    """The workers of a cluster that this process starts now begin as forks. Two of its processes are left out: the one
    that reads all logs again and again, to print them in a driver, and the autoscaler's, which has nothing to scale."""
    ordinary, path = RayParams.update_if_absent, str(Path(__file__).with_name("start_worker.py"))

    def update_if_absent(self: Any, **options: Any) -> None:
        ordinary(self, **options | {name: path for name in ("worker_path", "setup_worker_path") if name in options})
        self.include_log_monitor, self.no_monitor = False, True

    with mock.patch.object(RayParams, "update_if_absent", update_if_absent):
        yield


@contextlib.contextmanager
def _template(path: str) -> Iterator[None]:
    """Runs the template, which is ready at first."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.workers.template", path]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while not os.path.exists(path):
            assert program.poll() is None, "the template of workers ended"
            assert time.monotonic() < deadline, "the template of workers is not ready"
            time.sleep(0.05)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
