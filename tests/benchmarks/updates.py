"""Weight updates through NCCL: a trainer on one GPU, a real SGLang replica on the other, and what can go wrong.

Needs two GPUs and SGLang: `python -m tests.benchmarks updates`. Model and engine arguments as in `serving`. Each case
is a trainer process of its own, for NCCL reads its variables once; on a CPU the cases run with gloo.
"""

from __future__ import annotations

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

CASES = ("unset", "set to 1", "replica killed", "afterwards")
UPDATES = 5
MOST_SECONDS = 60.0
"""Until an error comes out."""
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
                found = _trained(case, model)
                print(case, json.dumps(found), sep=": ", flush=True)
                rows.append(_row(case, found))
        ray.shutdown()
    return show("Weight updates through a process group", rows)


def _config(model: str) -> RolloutConfig:
    overrides = {
        "service.name": "updates",
        "service.actors": 1,
        "tasks.domain": "mock",
        "policy.engine": "sglang",
        "policy.model": model,
        "policy.tokenizer": str(EMBEDDED_TOKENIZER),
        "policy.engine_arguments": ENGINE,
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
    ok = not found.get("hung") and (expected in error if expected else not error) and found["seconds"] < MOST_SECONDS
    target = f"error that says {expected}" if expected else "no error"
    return Row(case, f"{found['seconds']:.2f} s", error[:60] or "-", str(found.get("updates", "")), target, ok)


class _Killing(dict[str, Any]):
    """Weights; the replica is killed when half of them are sent."""

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        for number, tensor in enumerate(super().values()):
            if number == len(self) // 2:
                time.sleep(2)  # the replica is receiving by now
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
    times: list[float] = []
    start = time.monotonic()
    try:
        with client.weight_group(backend) as group:  # type: ignore[arg-type]
            for _ in range(UPDATES):
                begun = time.monotonic()
                client.update_weights(_Killing(weights) if case == "replica killed" else weights, group=group)
                times.append(round(time.monotonic() - begun, 3))
    except RolloutError as error:
        return {"error": str(error), "seconds": time.monotonic() - start, "updates": times}
    return {"seconds": time.monotonic() - start, "updates": times, "version": client.weight_version()}


if __name__ == "__main__":
    print(json.dumps(_train(*sys.argv[1:])), flush=True)
    os._exit(0)  # what waits in a broken group may not let go
