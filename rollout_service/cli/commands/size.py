"""`size`: how large a cluster a model and a number of episodes need.

Invariant: only arithmetic; nothing is started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def size(
    model: Annotated[Path, typer.Option(help="Folder of the model; only its config.json is read.")],
    gpu_memory: Annotated[float, typer.Option(help="GiB of one GPU.")],
    episodes: Annotated[int, typer.Option(help="Episodes in flight.")],
    context: Annotated[int, typer.Option(help="Tokens of an episode at its end.")],
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share one replica.")] = 1,
    memory_fraction: Annotated[float, typer.Option(help="Share of a GPU's memory for weights and cache.")] = 0.85,
) -> None:
    """Compute how many replicas and environment actors a number of episodes in flight needs. Starts nothing."""
    from rich.console import Console
    from rich.table import Table

    from rollout_service.cli.sizing import ClusterSize, ModelShape

    shape = ModelShape.read(model)
    needed = ClusterSize(shape, gpu_memory, episodes, context, tensor_parallel, memory_fraction)
    least, most = (each / 2**30 for each in needed.environment_bytes)
    table = Table(show_header=False, title=f"{episodes:,} episodes of {context:,} tokens, GPUs of {gpu_memory:g} GiB")
    table.add_row("model", f"{shape.parameters:,} parameters, {needed.weight_bytes / 2**30:.1f} GiB")
    table.add_row("key-value cache", f"{needed.cache_bytes_per_token / 2**10:g} KiB a token")
    table.add_row("one replica", f"{needed.cache_tokens:,} tokens: {needed.episodes_per_replica} episodes")
    table.add_row("policy.replicas", f"{needed.replicas} ({needed.gpus} GPUs)")
    table.add_row("policy.engine_arguments", f"tp_size: {tensor_parallel}, mem_fraction_static: {memory_fraction:g}")
    table.add_row("service.actors", f"{needed.actors} (a CPU each)")
    table.add_row("service.slots", f"{needed.slots}")
    table.add_row("environments' memory", f"{least:.1f} to {most:.1f} GiB, and what Ray takes")
    Console().print(table)
