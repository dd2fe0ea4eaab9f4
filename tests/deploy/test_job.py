"""The main job on a cluster, by the commands that the README gives for a fresh machine, run as they stand there.

Only the ports, the place of the files and the number of episodes are others: the machine has other clusters too.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rollout_service.record import storage
from tests.support.ports import free_port

README = Path(__file__).parents[2] / "README.md"


def commands() -> tuple[str, str]:
    """What the README says: how to start a head, and how to submit."""
    section = re.search(r"^## The main job on a cluster$(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    start, submit = re.findall(r"^```bash$(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    return start, submit


def changed(text: str, changes: dict[str, str]) -> str:
    """The text with other words in the place of some, each of which it has."""
    for old, new in changes.items():
        assert old in text, f"the README's command has no {old!r}"
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Machine:
    """A head that was started in a home of its own, where there was nothing."""

    dashboard: str
    environment: dict[str, str]

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run it in bash, as its user would."""
        command = ["bash", "-euc", script]
        return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=self.environment)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    # Ray puts sockets under its temporary folder, whose names may have 107 bytes: pytest's own is too long.
    folder = f"/tmp/ray-job-test-{os.getpid()}"
    others = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_A", "ROLLOUT_", "TAU2_"))}
    home, path = str(tmp_path_factory.mktemp("home")), f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    port = free_port()
    fresh = Machine(f"http://127.0.0.1:{port}", others | {"HOME": home, "PATH": path})
    options = {
        "--port": free_port(),
        "--dashboard-port": port,
        "--ray-client-server-port": free_port(),
        "--dashboard-agent-listen-port": free_port(),
        "--metrics-export-port": free_port(),
        "--num-cpus": 2,
        "--temp-dir": folder,
    }
    arguments = " ".join(f"{name}={value}" for name, value in options.items())
    try:
        started = fresh.run(changed(commands()[0], {"ray start --head": f"ray start --head {arguments}"}))
        assert started.returncode == 0, started.stdout + started.stderr
        yield fresh
    finally:
        # `ray stop` would stop every cluster of the machine. Ray's agents have no folder in their titles, and without
        # their cluster they would keep a core busy for a minute; they are the raylet's children.
        everything = [*psutil.process_iter(["cmdline"])]
        ours = [each for each in everything if any(folder in word for word in each.info["cmdline"] or ())]
        for process in ours:
            family = [process]
            with contextlib.suppress(psutil.Error):
                family += process.children(recursive=True)
            for each in family:
                with contextlib.suppress(psutil.Error):
                    each.kill()


def submit(machine: Machine, changes: dict[str, str]) -> subprocess.CompletedProcess[str]:
    start, command = commands()
    exports = "\n".join(re.findall(r"^export .*$", start, re.MULTILINE))
    return machine.run(exports + changed(command, {"http://HEAD:8265": machine.dashboard} | changes))


@pytest.fixture(scope="module")
def ended(machine, tmp_path_factory) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """Two jobs that were submitted at once, because a job mostly waits for Ray: one writes into the folder, and one has
    bad input."""
    folder, other = (tmp_path_factory.mktemp("shared") for _ in range(2))
    for each in folder, other:
        (each / "rollout.yaml").write_text("policy: {engine: scripted}\nservice: {actors: 1}\n")
    good = {"--n 256": "--n 8", "/shared": str(folder)}
    bad = {"--domain retail": "--domain retial", "/shared": str(other)}
    with ThreadPoolExecutor() as threads:
        return folder, list(threads.map(lambda changes: submit(machine, changes), [good, bad]))


def test_the_readme_s_commands_run_the_main_job_on_a_fresh_machine(ended):
    folder, (done, _) = ended
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert "8/8 episodes" in done.stdout
    assert len(storage.read(folder / "retail.parquet")) == 8


def test_a_job_with_bad_input_fails_with_the_reason_in_its_log(ended):
    _, (_, failed) = ended
    assert failed.returncode != 0
    assert "there is no domain 'retial'" in failed.stdout + failed.stderr


def test_a_client_without_the_cluster_s_token_is_told_which_variable_and_file_hold_it(tmp_path):
    """Ray itself looks for the token before it asks the cluster."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        code = f"from rollout_service import RolloutClient; RolloutClient('127.0.0.1:{listening.getsockname()[1]}')"
        others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_A")}
        environment = others | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    last = done.stderr.strip().splitlines()[-1]
    assert "ServiceError: Cannot connect to a Ray cluster at '127.0.0.1:" in last
    assert "no authentication token was found" in last
    assert "RAY_AUTH_MODE=token, and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN: `ray get-auth-token`" in last
