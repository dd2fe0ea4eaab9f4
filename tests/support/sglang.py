"""Real SGLang on the CPU: what a replica or a server needs to run it.

Invariant: nothing here changes this process: SGLang and what stands in for its kernels are on the path of the processes
that serve, and of no other.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

INSTALLED = Path(sys.prefix) / "sglang"
"""Where `make test` puts it."""

_MODELS = {path.stem for path in (INSTALLED / "sglang/srt/models").glob("*.py")}

ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "sglang_cpu"), str(INSTALLED), str(Path.cwd())]),
    "PYTHONWARNINGS": "ignore",
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": "python",  # the other one is built for another version of torch
    "OMP_NUM_THREADS": "1",
    # A scheduler imports all models, which takes seconds; the tests have one.
    "SGLANG_DISABLED_MODEL_ARCHS": ",".join(_MODELS - {"qwen3"}),
}

ENGINE_ARGUMENTS: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "dtype": "float32",
    "disable_cuda_graph": True,
    "mem_fraction_static": 0.1,
    "max_total_tokens": 65536,
    "max_running_requests": 64,  # by default there is a table for 2,048, and its 0.5 GB are written at the start
    "log_level": "error",
}

needed = pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs SGLang in the environment's folder: make test")
