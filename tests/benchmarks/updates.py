"""Weight updates: a trainer on one GPU, a real SGLang replica on the other, every way to send, and what can go wrong.

Needs two GPUs and SGLang: `python -m tests.benchmarks updates`. Model and engine arguments as in `serving`. Each case
is a trainer process of its own, for NCCL reads its variables once; on a CPU the groups use gloo. Turns run meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
import transformers

from rollout_service import RolloutClient, RolloutConfig
from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from rollout_service.errors import RolloutError
from tests.benchmarks.measure import Row, show
from tests.benchmarks.serving import ENGINE, _model

CASES = ("unset", "in_place", "drain", "set to 1", "object store", "checkpoint", "replica killed", "afterwards")
"""Variables of the trainer, modes of updates through a group, other ways to send, and failures."""
UPDATES = 20
MOST_SECONDS = {"replica killed": 10.0}
"""Until an error comes out, from when its cause was there."""
_MOST_WHOLE, _MOST_STOPPED = 3.0, 0.5
"""Most seconds of an update, the first one apart, and most for which no turn runs in it."""
_EPISODES = 512
"""More than are finished in any case."""
_HANG_SECONDS = 240.0
"""Of a trainer process, which is then called hanging."""


def run() -> bool:
    """Start the service, and one trainer after the other."""
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder) / "model")
        ray.init("local", include_dashboard=False, log_to_driver=False, namespace="rollout_service")
        with RolloutClient(config=_config(model)) as client:
            rows = []
            for case in CASES if torch.cuda.is_available() else [case for case in CASES if case != "set to 1"]:
                _wait_for_the_replica(client)
                with contextlib.closing(client.stream(_EPISODES)) as stream:
                    stream.open()
                    found = _trained(case, model)
                print(case, json.dumps(found), sep=": ", flush=True)
                rows.append(_row(case, found))
        ray.shutdown()
    return show("Weight updates through a process group", rows)


def _config(model: str) -> RolloutConfig:
    overrides = {
        "service.name": "updates",
        "service.actors": 1,
        "service.slots": 64,
        "tasks.domain": "mock",
        "policy.engine": "sglang",
        "policy.model": model,
        "policy.tokenizer": str(EMBEDDED_TOKENIZER),
        "policy.engine_arguments": ENGINE,
        "policy.weight_staging": os.environ.get("BENCHMARK_STAGING", "host"),
        "policy.env_vars": json.loads(os.environ.get("BENCHMARK_ENVIRONMENT", "{}")),
    }
    return RolloutConfig.load(overrides=overrides, environ={})


def _wait_for_the_replica(client: RolloutClient) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            if len(client.replicas()) == 1:
                return
        except Exception as error:  # it is being replaced
            if time.monotonic() > deadline:
                raise error
        time.sleep(1)


def _trained(case: str, model: str) -> dict[str, Any]:
    """What a trainer process found."""
    environment = {name: value for name, value in os.environ.items() if name != "NCCL_CUMEM_ENABLE"}
    if case == "set to 1":
        environment["NCCL_CUMEM_ENABLE"] = "1"
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.benchmarks.updates", case, address, model]
    with open(Path(tempfile.gettempdir(), "trainer.log"), "ab") as log:
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=log, timeout=_HANG_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"the trainer hung for {_HANG_SECONDS:.0f} s", "seconds": _HANG_SECONDS, "hung": True}
    lines = done.stdout.decode().strip().splitlines()
    if not lines:
        return {"error": f"the trainer ended with {done.returncode}, see trainer.log", "seconds": 0.0, "hung": True}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _row(case: str, found: dict[str, Any]) -> Row:
    error = found.get("error") or ""
    expected = {"set to 1": "NCCL_CUMEM_ENABLE", "replica killed": "died"}.get(case)
    if expected:
        ok = not found.get("hung") and expected in error and found["seconds"] < MOST_SECONDS.get(case, 60.0)
        return Row(case, f"{found['seconds']:.2f} s", error[:60] or "-", "", f"error that says {expected}", ok)
    if error:
        return Row(case, "-", error[:60], "", "no error", False)
    whole, stopped = max(found["updates"][1:]), max(found["stopped"][1:])
    ok = whole <= _MOST_WHOLE and stopped <= _MOST_STOPPED
    first = f"the first {found['updates'][0]:.2f} s, {found['stopped'][0]:.2f} s"
    target = f"≤ {_MOST_WHOLE:g} s, ≤ {_MOST_STOPPED:g} s"
    return Row(case, f"{whole:.2f} s, no turn for {stopped:.2f} s", first, "", target, ok)


class _Killing(dict[str, Any]):
    """Weights; the replica is killed when half of them are sent."""

    killed = 0.0

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        for number, tensor in enumerate(super().values()):
            if number == len(self) // 2:
                time.sleep(2)  # the replica is receiving by now
                self.killed = time.monotonic()
                for process in psutil.process_iter(["cmdline"]):
                    if " ".join(process.info["cmdline"] or []).startswith("ray::ServeReplica"):
                        process.send_signal(signal.SIGKILL)
            yield tensor


def _train(case: str, address: str, model: str) -> dict[str, Any]:
    """As a trainer would: attach, make a group, send weights."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", torch.cuda.device_count() - 1)
        torch.cuda.set_device(device)
    weights = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).state_dict()
    client = RolloutClient(address, config=RolloutConfig.load(overrides={"service.name": "updates"}, environ={}))
    sent: Any = {"replica killed": _Killing(weights), "checkpoint": model}.get(case, weights)
    mode: Any = case if case in ("in_place", "drain") else "abort_and_resume"
    whole, stopped = [], []
    start = time.monotonic()
    try:
        alone = case in ("object store", "checkpoint")
        with contextlib.nullcontext() if alone else client.weight_group(backend) as group:  # type: ignore[arg-type]
            for _ in range(UPDATES):
                begun = time.monotonic()
                report = client.update_weights(sent, group=group, mode=mode)
                whole.append(time.monotonic() - begun)
                stopped.append(max(state.stopped_seconds for state in report.replicas))
    except RolloutError as error:
        cause = sent.killed if isinstance(sent, _Killing) and sent.killed else start
        return {"error": str(error), "seconds": time.monotonic() - cause}
    return {"updates": whole, "stopped": stopped, "version": client.weight_version()}


if __name__ == "__main__":
    print(json.dumps(_train(*sys.argv[1:])), flush=True)
    os._exit(0)  # what waits in a broken group may not let go
