"""`python -m tests.chaos.head [--episodes 120] [--away 20] [--service-on worker]`: the head node is lost while a
collection runs, and comes back. Needs the program redis-server. Exit code 1 when something was violated.

Two Ray nodes on this machine, a head and a worker, share a Redis. Every process of the head is killed and, after a
while, `ray start --head` is called again with an empty folder, as on another machine. The stream's process belongs to
the worker; the service is started on the worker or, with `--service-on head`, on the node that is lost.

Invariant: only processes that this one started are killed, and none of them outlives it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos import history
from tests.chaos.checker import Violation, check
from tests.chaos.process import Process
from tests.chaos.schedule import Schedule
from tests.chaos.service import SCRIPTED
from tests.support.ports import free_port

_SETTINGS = SCRIPTED | {"service__name": "head", "service__slots": 4, "service__log_level": "INFO"}
_START_SECONDS, _PATIENCE_SECONDS = 240.0, 240.0


@dataclass
class Nodes:
    """A head, a worker and their Redis."""

    folder: Path
    redis: int
    """Port, as the next one."""
    port: int
    cpus: int
    """Of a head."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    heads: int = 0
    """How many heads there were."""

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start all three."""
        options = ("--port", str(self.redis), "--save", "", "--appendonly", "no", "--dir", str(self.folder))
        self._run("redis", ["redis-server", *options])
        _wait_for(self.redis)
        self.start_head()
        self._ray("worker", "--address", self.address, "--num-cpus", "4")

    def start_head(self) -> None:
        """Start a head in a folder of its own. Returns when it takes connections."""
        self.heads += 1
        options = ("--include-dashboard", "false", "--num-cpus", str(self.cpus))
        self._ray(f"head{self.heads}", "--head", "--port", str(self.port), *options)
        _wait_for(self.port)

    def _ray(self, name: str, *options: str) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        store = ("--object-store-memory", "200000000", "--disable-usage-stats", "--block")
        self._run(name, [ray, "start", *options, *store, "--temp-dir", str(self.folder / name)])

    def _run(self, name: str, command: list[str]) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, name: str) -> int:
        """Kill the process of that name and all that it started. Returns their number."""
        process = self.processes.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            family = [*root.children(recursive=True), root]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()
            return len(family)
        return 0


def main() -> None:
    """Lose a head, and show what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.head", description="A head node is lost.")
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--after", type=int, default=30, help="deliveries before the head is lost")
    parser.add_argument("--away", type=float, default=20.0, help="seconds until a head is started again")
    parser.add_argument("--service-on", choices=("worker", "head"), default="worker")
    parser.add_argument("--folder", type=Path, help="keep Ray's logs and the delivery logs there, in a new folder")
    arguments = parser.parse_args()
    if shutil.which("redis-server") is None:
        sys.exit("The program redis-server is missing: apt-get install redis-server.")
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "300",  # by default Ray's processes end after 60 s without a head
    }
    with _nodes(arguments.folder, 4 if arguments.service_on == "head" else 0) as nodes:
        sys.exit(not _trial(nodes, arguments))


@contextlib.contextmanager
def _nodes(kept: Path | None, cpus: int) -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="head-", ignore_cleanup_errors=True) as made:
        nodes = Nodes(Path(made) if kept is None else kept.resolve(), free_port(), free_port(), cpus)
        nodes.folder.mkdir(exist_ok=True)
        os.environ["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{nodes.redis}"
        try:
            nodes.start()
            yield nodes
        finally:
            for name in reversed(list(nodes.processes)):
                nodes.kill(name)


def _trial(nodes: Nodes, arguments: argparse.Namespace) -> bool:
    """Whether all came, once."""
    clients = [_client(nodes, "head1" if arguments.service_on == "head" else "worker")]
    try:
        if arguments.service_on == "head":  # the service stays; its reader belongs to the node that stays
            clients.append(_client(nodes, "worker"))
        calm, log = nodes.folder / "calm.jsonl", nodes.folder / "log.jsonl"
        _order(clients[-1], arguments.episodes, calm)
        clients[-1].answer(_PATIENCE_SECONDS)
        _order(clients[-1], arguments.episodes, log)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while history.count(log) < arguments.after and time.monotonic() < deadline:
            time.sleep(0.02)
        killed, lost = nodes.kill("head1"), time.time()
        time.sleep(arguments.away)
        nodes.start_head()
        back = time.time()
        print(f"{killed} processes of the head were killed after {arguments.after} of {arguments.episodes} deliveries.")
        print(f"A head took connections {back - lost:.1f} s later.")
        ended = _ended(clients[-1])
    finally:
        for client in clients:
            client.end(1.0)
    return _report(history.read(calm), history.read(log), lost, back, ended)


def _report(calm: list[history.Delivery], came: list[history.Delivery], lost: float, back: float, ended: str) -> bool:
    """Print what was seen. Returns whether all came, once."""
    verdict = check(calm, came)
    violations = [*([Violation("broken", ended)] if ended else []), *verdict.violations]
    after = sorted(each.at for each in came if each.at > lost)
    print(f"{sum(at < back for at in after)} came while there was no head.")
    if after and after[-1] > back:
        first = next(at for at in after if at > back)
        print(f"The first delivery came {first - back:.1f} s after the head, the last one {after[-1] - back:.1f} s.")
    print(f"{verdict.delivered} delivered, {verdict.reported} reported, {len(violations)} violations.")
    for violation in violations[:10]:
        print(f"    {violation}")
    return not violations


def _client(nodes: Nodes, node: str) -> Process:
    """A process of that node, with the service, which it starts if there is none."""
    settings = json.dumps(_SETTINGS | {"service__journal": str(nodes.folder / "journal")})
    client = Process("tests.chaos.head_client", nodes.folder, nodes.address, str(nodes.folder / node), settings)
    ready = client.answer(_START_SECONDS)
    print(f"The coordinator is {'' if ready['coordinator is here'] else 'not '}on the {node}.", flush=True)
    return client


def _order(client: Process, episodes: int, log: Path) -> None:
    client.say({"schedule": Schedule("calm", 0, episodes, 2, 1).to_json(), "log": str(log)})


def _ended(client: Process) -> str:
    """How the order ended: "" well, else why not."""
    try:
        return str(client.answer(_PATIENCE_SECONDS)["ended"])
    except RuntimeError as error:
        return f"nothing was heard of the client: {error}"


def _wait_for(port: int) -> None:
    """Wait until something listens there.

    Raises:
        TimeoutError: nothing does.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens at port {port}")


if __name__ == "__main__":
    main()
