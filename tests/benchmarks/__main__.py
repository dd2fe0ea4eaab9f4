"""`python -m tests.benchmarks [name …]`: all benchmarks, or those named. Exit code 1 when a target is missed."""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "start",
    "codec",
    "environments",
    "episodes",
    "starvation",
    "metrics",
    "slots",
    "scale",
    "calls",
    "journal",
    "tape",
    "rates",
    "against_tau2",
    "viewer",
    "samplers",
)
GPU_NAMES = ("serving", "updates", "served_user", "admission", "user_latency")
"""Only when named: they need SGLang. Their models have the size of Qwen3-4B on a GPU, and are tiny on a CPU."""


if __name__ == "__main__":
    chosen = sys.argv[1:] or NAMES
    if not set(chosen) <= {*NAMES, *GPU_NAMES}:
        sys.exit(f"There are the benchmarks {', '.join([*NAMES, *GPU_NAMES])}.")
    met = [importlib.import_module(f"tests.benchmarks.{name}").run() for name in chosen]
    sys.exit(not all(met))
