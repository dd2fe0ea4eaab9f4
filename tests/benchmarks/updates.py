"""Weight updates: a trainer on one GPU, a real SGLang replica on the other, every way to send, and what can go wrong.

`python -m tests.benchmarks updates`, on two GPUs or, with a tiny model, on a CPU, where the groups use gloo. The model
has random weights in the size of Qwen3-4B, 8 GB. Episodes run meanwhile, and each version's log-probs are recomputed;
`tests.benchmarks.trainer` says how. `BENCHMARK_CASES` holds some of the cases as JSON, `BENCHMARK_ENGINE` more engine
arguments, `BENCHMARK_MODEL` another shape's settings, `BENCHMARK_ENVIRONMENT` the replica's variables, and
`BENCHMARK_STAGING` is `policy.weight_staging`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from rollout_service import RolloutClient, RolloutConfig
from rollout_service.errors import RolloutError
from tests.benchmarks import trainer
from tests.benchmarks.measure import QWEN3_4B, Row, show
from tests.support.openai_server import OpenAIServer, talker

ON_GPU = torch.cuda.is_available()
ENGINE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_ENGINE", "{}"))
SHAPE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_MODEL", "null")) or (
    QWEN3_4B | {"vocab_size": 76800, "initializer_range": 0.02, "dtype": "bfloat16"} if ON_GPU else {}
)
"""The rows of the vocabulary that the tokenizer does not use give the model its 8 GB."""
CASES: list[str] = json.loads(os.environ.get("BENCHMARK_CASES", "null")) or [
    case for case in trainer.CASES if ON_GPU or case != trainer.REFUSED
]
ACTORS, SLOTS, TURNS, TURN_TOKENS = (4, 64, 3, 32) if ON_GPU else (1, 6, 2, 12)
CASE_SECONDS = dict.fromkeys(CASES, 75.0 if ON_GPU else 200.0) | (
    {trainer.STORE: 120.0, trainer.DISK: 120.0, trainer.KILLED: 220.0} if ON_GPU else {trainer.KILLED: 300.0}
)
"""Of a case, which then counts as hanging. A killed replica's successor has to start in its case."""
MOST_WHOLE, MOST_STOPPED, MOST_UNTIL_ERROR = 3.0, 0.5, 10.0
"""Most seconds of an update, the first one apart; for which no turn runs in it; and from a kill to the error."""
_SUCCESSOR_SECONDS, _SEAT_SECONDS = 120.0, 60.0
LEAST_APART = 4.0
"""Log-probs differ so many times more from those of another version than from those of their own, at least."""
MOST_OFF = 0.5
"""No token's log-prob differs more from that of its own version; bf16 explains 0.15."""


def run() -> bool:
    """Start the trainers and the service, and play one case after the other."""
    begun = time.monotonic()
    if not set(CASES) <= set(trainer.CASES):
        sys.exit(f"There are the cases {', '.join(trainer.CASES)}.")
    if ON_GPU and torch.cuda.device_count() < 2:
        sys.exit("Two GPUs are needed: one for the trainer, one for the replica.")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = trainer.make_models(folder, SHAPE)
        _say(begun, f"the model is made; cases: {', '.join(CASES)}")
        user = stack.enter_context(OpenAIServer(talker(TURNS)))
        ray.init("local", include_dashboard=False, log_to_driver=False, namespace=trainer.NAMESPACE)
        stack.callback(ray.shutdown)
        told = {"address": ray.get_runtime_context().gcs_address, "models": models, "episodes": 2 * SLOTS}
        seat = _Seat.options(num_gpus=1).remote() if ON_GPU else None  # type: ignore[attr-defined]
        told["device"] = _device(seat) if seat else "cpu"
        environment = {name: value for name, value in os.environ.items() if name != "NCCL_CUMEM_ENABLE"}
        trainers = {}
        for kind, more in (("usual", {}), (trainer.REFUSED, {"NCCL_CUMEM_ENABLE": "1"})):
            if any((case == trainer.REFUSED) == bool(more) for case in CASES):
                trainers[kind] = _Trainer(told, environment | more, folder / f"{kind}.log")
                stack.callback(trainers[kind].end)
        client = stack.enter_context(RolloutClient(config=_config(models[0], user.base_url)))
        _say(begun, "the service runs")
        rows = []
        for case in CASES:
            player = trainers[case if case == trainer.REFUSED else "usual"]
            found = player.played(case)
            _say(begun, f"{case}: {json.dumps(found)}")
            rows += _rows(case, found)
            if "failed" in found:
                print(player.log_end(), flush=True)
            if player.has_ended and case != CASES[-1]:
                _recover(client, models)
    return show("Weight updates while episodes run", rows)


def _say(begun: float, what: str) -> None:
    print(f"[{time.monotonic() - begun:.0f} s] {what}", flush=True)


def _config(model: str, user: str) -> RolloutConfig:
    overrides: dict[str, Any] = {
        "service.name": trainer.SERVICE,
        "service.actors": ACTORS,
        "service.slots": SLOTS // ACTORS,
        "tasks.domain": "mock",
        "user.model": "openai/talker",
        "user.base_url": user,
        "policy.engine": "sglang",
        "policy.model": model,
        "policy.sampling.max_new_tokens": TURN_TOKENS,
        "policy.start_seconds": 300.0,
        "policy.retry_seconds": 240.0,  # until a killed replica's successor has started
        "policy.weight_staging": os.environ.get("BENCHMARK_STAGING", "auto"),
    }
    arguments, variables = ENGINE, json.loads(os.environ.get("BENCHMARK_ENVIRONMENT", "{}"))
    if not ON_GPU:
        from tests.support import sglang

        arguments, variables = sglang.ENGINE_ARGUMENTS | arguments, sglang.ENVIRONMENT | variables
        overrides["policy.gpus_per_replica"] = 0.0
    overrides |= {"policy.engine_arguments": arguments, "policy.env_vars": variables}
    return RolloutConfig.load(overrides=overrides, environ={})


@ray.remote
class _Seat:
    """Keeps a GPU for the trainer, so that a killed replica's successor does not start there."""

    def gpu(self) -> str:
        """The GPU, as CUDA_VISIBLE_DEVICES names it."""
        return os.environ["CUDA_VISIBLE_DEVICES"]


def _device(seat: Any) -> str:
    """The seat's GPU as a trainer process names it, which sees all those that this one sees."""
    gpu = ray.get(seat.gpu.remote(), timeout=_SEAT_SECONDS)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"cuda:{visible.split(',').index(gpu) if visible else gpu}"


class _Trainer:
    """A trainer process. It is started anew after it hung or ended."""

    def __init__(self, told: dict[str, Any], environment: dict[str, str], log: Path) -> None:
        self._told = told
        self._environment = environment
        self._log = log
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.benchmarks.trainer", json.dumps(self._told)]
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )

    def played(self, case: str) -> dict[str, Any]:
        """What the process found; `failed` says why it found nothing."""
        if self.has_ended:
            self._process = self._started()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        begun = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{case}\n".encode())
            self._process.stdin.flush()
        came, _, _ = select.select([self._process.stdout], [], [], CASE_SECONDS[case])
        line = self._process.stdout.readline() if came else b""
        seconds = round(time.monotonic() - begun, 1)
        if line:
            return {"seconds": seconds} | json.loads(line)
        self.end()
        return {"seconds": seconds, "failed": f"the trainer {'ended' if came else 'hangs'} after {seconds:.0f} s"}

    @property
    def has_ended(self) -> bool:
        """Whether the process hung, and was killed, or ended by itself."""
        return self._process.poll() is not None

    def log_end(self) -> str:
        """The end of what it logged."""
        return self._log.read_text(errors="replace")[-4000:]

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()


def _recover(client: RolloutClient, models: list[str]) -> None:
    """After a trainer that did not play its case to the end: a new replica with new weights, whatever the old one waits
    for."""
    trainer.kill_the_replica(os.getpid())
    deadline = time.monotonic() + _SUCCESSOR_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(RolloutError):
            version = client.weight_version() + 1
            client.update_weights(trainer.folder_of(models, version), version=version)
            return
        time.sleep(1)


def _rows(case: str, found: dict[str, Any]) -> list[Row]:
    if "failed" in found:
        return [Row(case, "-", found["failed"][:60], "", "no error", False)]
    if "refusal" in found:
        return [Row(case, "refused", "", "", "names the variable", "NCCL_CUMEM_ENABLE" in found["refusal"])]
    rows = [_error_row(case, found) if case == trainer.KILLED else _times_row(case, found)]
    own, other = found["own"], found["other"]
    seen = f"{found['versions_seen']} of {found['versions']} versions, {found['tokens']:,} tokens"
    worst = found["own_worst"]
    ok = found["versions_seen"] == found["versions"] and other > LEAST_APART * own and worst <= MOST_OFF
    ratio, target = f"{other / own:.0f}×", f"all versions, ≥ {LEAST_APART:g}×, no token > {MOST_OFF:g} off"
    off = f"{own:.4f} off, worst {worst:.2f}"
    return [*rows, Row(f"  log-probs: {seen}", off, f"{other:.4f} off the next one's", ratio, target, ok)]


def _error_row(case: str, found: dict[str, Any]) -> Row:
    until, played, asked = found["until_error"], found["played"], found["asked"]
    ok = until <= MOST_UNTIL_ERROR and "died" in found["error"] and played == asked
    return Row(
        case,
        f"an error after {until:.2f} s, {played} of {asked} episodes",
        f"all over {found['until_end']:.0f} s after the kill",
        "",
        f"≤ {MOST_UNTIL_ERROR:g} s, all",
        ok,
    )


def _times_row(case: str, found: dict[str, Any]) -> Row:
    whole, stopped = found["whole"], found["stopped"]
    most = max(whole[1:]), max(stopped[1:])
    target = f"≤ {MOST_WHOLE:g} s, ≤ {MOST_STOPPED:g} s" if ON_GPU else ""  # of 8 GB
    return Row(
        f"{case}: {len(whole)} updates, the longest",
        f"{most[0]:.2f} s, no turn for {most[1]:.2f} s",
        f"median {statistics.median(whole[1:]):.2f} and {statistics.median(stopped[1:]):.2f} s, first {whole[0]:.2f} s",
        "",
        target,
        not ON_GPU or (most[0] <= MOST_WHOLE and most[1] <= MOST_STOPPED),
    )


if __name__ == "__main__":
    sys.exit(not run())
