"""The real engine under faults: SGLang on the machine's GPUs, or on its CPU, with a model of random weights.

Invariant: the model samples text only and never ends a turn, so the lengths of an episode are the same in every run,
whatever it writes. What GPUs hold after a run is compared with what they held before it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

_FREE_SECONDS = 30.0
"""How long GPUs may take until they have their memory back."""

_MARGIN_MIB = 200
"""Memory that a GPU may hold beyond what it held before: the driver's own."""

_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "initializer_range": 0.02,
    "dtype": "bfloat16",
}
"""Shape of Qwen3-0.6B."""


def settings(folder: Path) -> dict[str, Any]:
    """What a service on SGLang has beside `SETTINGS`. `BENCHMARK_ENGINE` holds engine arguments for a GPU as JSON."""
    from tests.support import sglang, tiny_model  # they import torch, which other engines do without

    on_gpu = bool(gpu_memory())
    model = folder / "model"
    if not model.exists():
        tiny_model.make(model, **_LARGE if on_gpu else {})
    given = json.loads(os.environ.get("BENCHMARK_ENGINE", "{}"))
    return {
        "policy__engine": "sglang",
        "policy__model": str(model),
        "policy__engine_arguments": given if on_gpu else sglang.ENGINE_ARGUMENTS,
        "policy__env_vars": {} if on_gpu else sglang.ENVIRONMENT,
        "policy__sampling": {"max_new_tokens": 200 if on_gpu else 20},
    }


def gpu_memory() -> list[int]:
    """MiB in use on each GPU, whoever uses it; empty: there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()] if found.returncode == 0 else []


def memory_is_free(before: list[int]) -> bool:
    """Wait until each GPU has its memory back, and print how that went. False: one has not."""
    begun = time.monotonic()
    while True:
        after, waited = gpu_memory(), time.monotonic() - begun
        is_free = all(now <= then + _MARGIN_MIB for now, then in zip(after, before, strict=True))
        if is_free or waited > _FREE_SECONDS:
            break
        time.sleep(0.5)
    if before:
        print(f"GPU memory in MiB: before {before}, {waited:.1f} s after the end {after}", flush=True)
    return is_free
