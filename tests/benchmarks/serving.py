"""Our Serve path against a bare SGLang server, and two replicas against one: the same traffic, by turns in one run.

`python -m tests.benchmarks serving`, on a GPU or, with a tiny model, on a CPU. The model has random weights in the
shape of Qwen3-4B. Each round starts the bare server and ours. The last round's goes on to weight updates, and one more
start has two replicas, where there are two GPUs. `BENCHMARK_CASES` holds some of `bare`, `updates` and `replicas` as
JSON, `BENCHMARK_SESSIONS` numbers of sessions, `BENCHMARK_ROUNDS` the number of rounds, `BENCHMARK_ENGINE` more engine
arguments, `BENCHMARK_MODEL` another shape's settings.
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
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve

from deploy import policy as application
from rollout_service.cluster import SERVE_ENVIRONMENT
from rollout_service.config import RolloutConfig
from rollout_service.policy.base import Policy
from rollout_service.policy.serve import ServePolicy
from rollout_service.policy.sglang_http import SglangHttpPolicy
from rollout_service.policy.weights import Checkpoint, WeightUpdate, stored
from tests.benchmarks import traffic
from tests.benchmarks.measure import QWEN3_4B, Row, show
from tests.support.ports import free_port

ON_GPU = torch.cuda.is_available()
ENGINE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_ENGINE", "{}"))
SHAPE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_MODEL", "null")) or (
    QWEN3_4B | {"vocab_size": 151936, "tie_word_embeddings": True}
    if ON_GPU
    else {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
    | {"num_attention_heads": 4, "num_key_value_heads": 2}
)
ENVIRONMENT: dict[str, str] = {}
"""Of the processes that serve."""
if not ON_GPU:
    from tests.support import sglang

    ENGINE, ENVIRONMENT = sglang.ENGINE_ARGUMENTS | ENGINE, sglang.ENVIRONMENT
CASES = json.loads(os.environ.get("BENCHMARK_CASES", "null")) or ("bare", "updates", "replicas")
ROUNDS = int(os.environ.get("BENCHMARK_ROUNDS", "2"))
SESSIONS: list[int] = json.loads(os.environ.get("BENCHMARK_SESSIONS", "[64, 128]" if ON_GPU else "[4]"))
"""The first number is also that of each replica where there are two."""
PROMPT_TOKENS, TURNS, TURN_TOKENS = (5000, 8, 150) if ON_GPU else (300, 3, 40)
LEAST_RATE, LEAST_HITS, LEAST_GAIN = 0.97, 0.97, 1.9
START_SECONDS = 300
"""Most that the bare server takes."""


class Sessions:
    """A process that takes turns with a policy, as an environment actor does."""

    async def run(self, policy: Policy, loads: list[traffic.Load]) -> list[traffic.Measured]:
        """Each load after the other."""
        return [await traffic.run(policy, load) for load in loads]


def run() -> bool:
    """Bare, ours, bare, ours; the best of each is not taken, all are summed."""
    begun = time.monotonic()
    if not set(CASES) <= {"bare", "updates", "replicas"}:
        sys.exit("There are the cases bare, updates and replicas.")
    two = "replicas" in CASES and (torch.cuda.device_count() >= 2 or not ON_GPU)
    bare: list[list[traffic.Measured]] = []
    ours: list[list[traffic.Measured]] = []
    both: list[traffic.Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder) / "model")
        ray.init("local", include_dashboard=False, log_to_driver=False)
        sessions = ray.remote(Sessions).options(runtime_env={"env_vars": SERVE_ENVIRONMENT}).remote()
        for round_number in range(ROUNDS):
            if "bare" in CASES:
                with _bare(model, Path(folder)) as policy:
                    bare.append(_measured(sessions, policy, _loads(round_number, SESSIONS)))
                _say(begun, "bare", SESSIONS, bare[-1])
            with _ours(model, 1) as policy:
                ours.append(_measured(sessions, policy, _loads(round_number, SESSIONS)))
                _say(begun, "ours", SESSIONS, ours[-1])
                if "updates" in CASES and round_number == ROUNDS - 1:
                    _update(sessions, policy, model)
        if two:
            with _ours(model, 2) as policy:
                doubled = [2 * SESSIONS[0]]
                both = _measured(sessions, policy, _loads(ROUNDS, doubled))
                _say(begun, "two replicas", doubled, both)
        ray.shutdown()
    one = _totals(ours)
    rows = _against_bare(one, _totals(bare)) if bare else []
    if two:
        rows.append(_row(f"two replicas, {SESSIONS[0]} sessions each", "output tokens/s", both[0], one[0], LEAST_GAIN))
    return show("Serve path against a bare SGLang server, and two replicas against one", rows)


def _against_bare(ours: list[traffic.Measured], bare: list[traffic.Measured]) -> list[Row]:
    rows = []
    for count, own, their in zip(SESSIONS, ours, bare, strict=True):
        for what, least in (("output tokens/s", LEAST_RATE), ("share of prompt tokens cached", LEAST_HITS)):
            rows.append(_row(f"{count} sessions", what, own, their, least))
    return rows


def _row(case: str, what: str, ours: traffic.Measured, base: traffic.Measured, least: float) -> Row:
    rate = what == "output tokens/s"
    own, their = (each.rate if rate else each.hit_share for each in (ours, base))
    style = "{:,.0f}" if rate else "{:.3f}"
    both = style.format(own), style.format(their)
    said = ON_GPU or not rate  # on a CPU the rate is that of whatever else the machine does
    target, ok = (f"≥ {least}", own / their >= least) if said else ("", True)
    return Row(f"{case}: {what}", *both, f"{own / their:.3f}", target, ok)


def _loads(seed: int, counts: list[int]) -> list[traffic.Load]:
    """One to warm up, and one for each number of sessions."""
    vocabulary = SHAPE["vocab_size"]
    warm_up = traffic.Load(counts[0] // 2, 2 * PROMPT_TOKENS // 5, 2, TURN_TOKENS // 3, vocabulary, 1000 + seed)
    return [warm_up] + [
        traffic.Load(count, PROMPT_TOKENS, TURNS, TURN_TOKENS, vocabulary, 10 * seed + index)
        for index, count in enumerate(counts)
    ]


def _measured(sessions: Any, policy: Policy, loads: list[traffic.Load]) -> list[traffic.Measured]:
    found: list[traffic.Measured] = ray.get(sessions.run.remote(policy, loads))
    return found[1:]


def _say(begun: float, what: str, counts: list[int], measured: list[traffic.Measured]) -> None:
    print(f"[{time.monotonic() - begun:.0f} s] {what}", flush=True)
    for count, it in zip(counts, measured, strict=True):
        text = f"{it.rate:,.0f} output tokens/s, {it.hit_share:.3f} cached, {it.seconds:.1f} s"
        print(f"  {count} sessions: {text}", flush=True)


def _totals(rounds: list[list[traffic.Measured]]) -> list[traffic.Measured]:
    """For each number of sessions, the sums of all rounds."""
    return [_total(list(each)) for each in zip(*rounds, strict=True)]


def _total(measured: list[traffic.Measured]) -> traffic.Measured:
    return traffic.Measured(
        sum(m.output_tokens for m in measured),
        sum(m.prompt_tokens for m in measured),
        sum(m.cached_tokens for m in measured),
        sum(m.seconds for m in measured),
    )


def _model(path: Path) -> str:
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SHAPE, max_position_embeddings=40960, dtype="bfloat16")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    torch.cuda.empty_cache()
    return str(path)


@contextlib.contextmanager
def _bare(model: str, folder: Path) -> Iterator[Policy]:
    flags = ["--skip-tokenizer-init", "--log-level", "warning"]
    for name, value in ENGINE.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, str(value)]
    log_file, port = folder / "bare.log", free_port()
    with open(log_file, "ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--port", str(port), *flags],
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log_file)
        yield SglangHttpPolicy(f"http://127.0.0.1:{port}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        time.sleep(5)  # for the driver to have its memory back


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(1)
    print(log.read_text(errors="replace")[-4000:], flush=True)
    raise RuntimeError("The bare server ended, or did not come up in time.")


@contextlib.contextmanager
def _ours(model: str, replicas: int) -> Iterator[Policy]:
    overrides = {
        "policy.engine": "sglang",
        "policy.model": model,
        "policy.replicas": replicas,
        "policy.engine_arguments": ENGINE,
        "policy.env_vars": ENVIRONMENT,
    }
    if not ON_GPU:
        overrides["policy.gpus_per_replica"] = 0.0
    config = RolloutConfig.load(overrides=overrides, environ={})
    serve.start(proxy_location="Disabled")
    serve.run(application.app(config), name="benchmark", route_prefix=None)
    try:
        yield ServePolicy("benchmark")
    finally:
        serve.delete("benchmark")
        time.sleep(5)


def _tensors(folder: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in Path(folder).glob("*.safetensors") for name, tensor in load_file(path).items()}


def _update(sessions: Any, policy: Policy, model: str) -> None:
    """How long weight updates take while sessions run. No target: it shows what to expect."""
    load = traffic.Load(SESSIONS[0], 2 * PROMPT_TOKENS // 5, 12, TURN_TOKENS, SHAPE["vocab_size"], 99)
    busy = sessions.run.remote(policy, [load])
    handle = serve.get_deployment_handle("policy", "benchmark")
    for version, mode in enumerate(("drain", "abort_and_resume", "in_place"), 1):
        time.sleep(2)
        start = time.perf_counter()
        handle.broadcast("update_weights", WeightUpdate(Checkpoint(model), version, mode)).results()
        print(f"  checkpoint, {mode}: {time.perf_counter() - start:.2f} s", flush=True)
    time.sleep(2)
    start = time.perf_counter()
    source = stored(_tensors(model), ray.put)
    put = time.perf_counter() - start
    handle.broadcast("update_weights", WeightUpdate(source, 4, "abort_and_resume")).results()
    print(f"  tensors, put in {put:.2f} s, all: {time.perf_counter() - start:.2f} s", flush=True)
    (measured,) = ray.get(busy)
    print("  meanwhile", f"{measured.rate:,.0f} output tokens/s", flush=True)


if __name__ == "__main__":
    sys.exit(not run())
