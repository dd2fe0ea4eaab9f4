"""A policy on SGLang with random weights in the shape of Qwen3-4B; without a GPU, a tiny one on the CPU.

It never ends a turn and calls no tool, so each turn has as many tokens as it may have. `BENCHMARK_ENGINE` holds more
engine arguments as JSON, `BENCHMARK_MODEL` another shape's settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import gpu_load
from tests.benchmarks.measure import QWEN3_4B
from tests.support import tiny_model

ON_GPU = torch.cuda.is_available()
ENGINE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_ENGINE", "{}"))
SHAPE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_MODEL", "null")) or (
    QWEN3_4B | {"initializer_range": 0.02, "dtype": "bfloat16"}
    if ON_GPU
    else {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
)
"""Fields of `Qwen3Config`. The vocabulary is the tokenizer's."""


def make(path: Path) -> str:
    """Write the model into the folder `path`; gives the folder."""
    with torch.device("cuda" if ON_GPU else "cpu"):
        tiny_model.make(path, **SHAPE)
    if ON_GPU:
        torch.cuda.empty_cache()
    return str(path)


def engine(section: str, gpus: float = 1.0, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of the engine, for the section `policy` or `user.serve`.

    Args:
        gpus: of a replica, where there are any.
        arguments: of the engine, before those of `BENCHMARK_ENGINE`.
    """
    given, variables = {**ENGINE, **(arguments or {})}, gpu_load.READABLE
    if not ON_GPU:
        from tests.support import sglang

        gpus, given, variables = 0.0, sglang.ENGINE_ARGUMENTS | given, variables | sglang.ENVIRONMENT
    return {
        f"{section}.engine_arguments": given,
        f"{section}.env_vars": variables,
        f"{section}.gpus_per_replica": gpus,
    }
