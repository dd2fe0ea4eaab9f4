"""The main job through `ray job submit`, on a real cluster of its own: `ray start --head`, dashboard included."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout_service import storage

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory) -> Iterator[str]:
    """Address of the dashboard of a head node that was started for these tests."""
    # Ray puts sockets under its temporary folder, whose names may have 107 bytes: pytest's own is too long.
    folder = f"/tmp/ray-job-test-{os.getpid()}"
    port = free_port()
    options = {
        "--port": free_port(),
        "--dashboard-port": port,
        "--dashboard-host": "127.0.0.1",
        "--ray-client-server-port": free_port(),
        "--dashboard-agent-listen-port": free_port(),
        "--metrics-export-port": free_port(),
        "--num-cpus": 2,
        "--temp-dir": folder,
    }
    arguments = [f"{name}={value}" for name, value in options.items()]
    log = tmp_path_factory.mktemp("head") / "log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "ROLLOUT_", "TAU2_"))}
    with log.open("w") as output:
        head = subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--include-dashboard=true",
                "--disable-usage-stats",
                *arguments,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while not _answers(address):
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address + "/api/version", timeout=2)
    except urllib.error.HTTPError:
        return True  # it wants a token: it is up
    except OSError:
        return False
    return True


def submit(dashboard: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        BIN / "ray",
        "job",
        "submit",
        "--address",
        dashboard,
        "--",
        sys.executable,
        "-m",
        "deploy.job",
        *arguments,
    ]
    environment = os.environ | {"RAY_AUTH_MODE": "token"}  # a new cluster asks for the token that `ray start` made
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)


def test_the_main_job_runs_on_the_cluster_that_it_is_submitted_to(dashboard, tmp_path):
    path = tmp_path / "job.jsonl"
    done = submit(dashboard, "-n", "6", "--group-size", "2", "--domain", "mock", "--output", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert "6/6 episodes" in done.stdout
    assert len(storage.read(path)) == 6


def test_a_job_with_bad_input_fails_with_the_reason_in_its_log(dashboard):
    failed = submit(dashboard, "-n", "6", "--domain", "retial")
    assert failed.returncode != 0
    assert "there is no domain 'retial'" in failed.stdout + failed.stderr
