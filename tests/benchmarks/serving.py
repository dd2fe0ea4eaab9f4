"""Our Serve path against a bare SGLang server: the same traffic, the same engine arguments, by turns in one run.

Needs a GPU and SGLang: `python -m tests.benchmarks serving`. The model has random weights in the shape of Qwen3-4B.
`BENCHMARK_ENGINE` holds more engine arguments as JSON, `BENCHMARK_MODEL` another shape's settings.
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

ENGINE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_ENGINE", "{}"))
SHAPE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_MODEL", "null")) or QWEN3_4B | {
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SESSIONS = json.loads(os.environ.get("BENCHMARK_SESSIONS", "[64, 128]"))
PROMPT_TOKENS, TURNS, TURN_TOKENS = 5000, 8, 150
LEAST_RATE, LEAST_HITS = 0.95, 0.97
PORT = 31017


class Sessions:
    """A process that takes turns with a policy, as an environment actor does."""

    async def run(self, policy: Policy, loads: list[traffic.Load]) -> list[traffic.Measured]:
        """Each load after the other."""
        return [await traffic.run(policy, load) for load in loads]


def run() -> bool:
    """Bare, ours, bare, ours; the best of each is not taken, all are summed."""
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder) / "model")
        ray.init("local", include_dashboard=False, log_to_driver=False)
        sessions = ray.remote(Sessions).options(runtime_env={"env_vars": SERVE_ENVIRONMENT}).remote()
        bare, ours = [], []
        for round_number in range(2):
            with _bare(model) as policy:
                bare.append(_measured(sessions, policy, round_number))
            print("bare", *_said(bare[-1]), sep="\n  ", flush=True)
            with _ours(model) as policy:
                ours.append(_measured(sessions, policy, round_number))
                print("ours", *_said(ours[-1]), sep="\n  ", flush=True)
                if round_number == 1:
                    _update(sessions, policy, model)
        ray.shutdown()
    rows = []
    for index, count in enumerate(SESSIONS):
        their, own = _total([r[index] for r in bare]), _total([r[index] for r in ours])
        for what, mine, base, least in (
            ("output tokens/s", own.rate, their.rate, LEAST_RATE),
            ("share of prompt tokens cached", own.hit_share, their.hit_share, LEAST_HITS),
        ):
            ratio = mine / base
            text = "{:,.0f}" if mine > 1 else "{:.3f}"
            rows.append(
                Row(
                    f"{count} sessions: {what}",
                    text.format(mine),
                    text.format(base),
                    f"{ratio:.3f}",
                    f"≥ {least}",
                    ratio >= least,
                )
            )
    return show("Serve path against a bare SGLang server", rows)


def _loads(seed: int) -> list[traffic.Load]:
    vocabulary = SHAPE["vocab_size"]
    warm_up = traffic.Load(32, 2000, 2, 50, vocabulary, 1000 + seed)
    counts = enumerate(SESSIONS)
    return [warm_up] + [
        traffic.Load(count, PROMPT_TOKENS, TURNS, TURN_TOKENS, vocabulary, 10 * seed + index) for index, count in counts
    ]


def _measured(sessions: Any, policy: Policy, seed: int) -> list[traffic.Measured]:
    found: list[traffic.Measured] = ray.get(sessions.run.remote(policy, _loads(seed)))
    return found[1:]


def _said(measured: list[traffic.Measured]) -> list[str]:
    return [
        f"{count} sessions: {it.rate:,.0f} output tokens/s, {it.hit_share:.3f} cached, {it.seconds:.1f} s"
        for count, it in zip(SESSIONS, measured, strict=True)
    ]


def _total(measured: list[traffic.Measured]) -> traffic.Measured:
    return traffic.Measured(
        sum(m.output_tokens for m in measured),
        sum(m.prompt_tokens for m in measured),
        sum(m.cached_tokens for m in measured),
        sum(m.seconds for m in measured),
    )


def _model(path: Path) -> str:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SHAPE, max_position_embeddings=40960, dtype="bfloat16")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    torch.cuda.empty_cache()
    return str(path)


@contextlib.contextmanager
def _bare(model: str) -> Iterator[Policy]:
    flags = ["--skip-tokenizer-init", "--log-level", "warning"]
    for name, value in ENGINE.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, str(value)]
    with open(Path(tempfile.gettempdir(), "bare.log"), "ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--port", str(PORT), *flags],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{PORT}/health", server)
        yield SglangHttpPolicy(f"http://127.0.0.1:{PORT}")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        time.sleep(5)  # for the driver to have its memory back


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError("the bare server ended; see bare.log")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(1)
    raise RuntimeError("the bare server did not come up in 300 s")


@contextlib.contextmanager
def _ours(model: str) -> Iterator[Policy]:
    config = RolloutConfig.load(
        overrides={"policy.engine": "sglang", "policy.model": model, "policy.engine_arguments": ENGINE}, environ={}
    )
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
    load = traffic.Load(64, 2000, 12, TURN_TOKENS, SHAPE["vocab_size"], 99)
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
