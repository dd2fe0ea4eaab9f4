"""`export`: stored trajectories in another program's format.

Invariant: it says how many trajectories are left out, and why. What is at the output stays unless --overwrite is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rollout_service.cli.stderr import say


def export(
    files: Annotated[list[Path], typer.Argument(help=".jsonl or .parquet files of trajectories.")],
    to: Annotated[str, typer.Option(help="tau2, inspect, sft or hf.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="tau2: a .json; inspect: an .eval; sft: a .jsonl; hf: a folder.")
    ],
    domain: Annotated[str | None, typer.Option(help="Only this domain's trajectories.")] = None,
    reward: Annotated[float | None, typer.Option(help="sft, hf: only those with at least this reward.")] = None,
    unique: Annotated[bool, typer.Option(help="sft, hf: of a task's equal conversations only the first.")] = False,
    per_task: Annotated[int | None, typer.Option(min=1, help="sft, hf: of each task only so many.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="sft: folder or hub name of the tokenizer, if the file names no folder here.")
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(min=1, help="tau2: limits.max_steps of the episodes, if the file is too old to say it."),
    ] = None,
    max_errors: Annotated[int | None, typer.Option(min=1, help="tau2: limits.max_errors, likewise.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output, once the new one is complete.")] = False,
) -> int:
    """Export trajectories: τ²-bench's results, an Inspect log, rows for supervised training, a Hugging Face dataset."""
    from rollout_service.export.exporting import export as export_to

    done = export_to(
        files,
        to,
        output,
        domain=domain,
        reward=reward,
        unique=unique,
        per_task=per_task,
        overwrite=overwrite,
        tokenizer=tokenizer,
        max_steps=max_steps,
        max_errors=max_errors,
    )
    say(f"{done.output} has {done.trajectories} of {done.trajectories + sum(done.left_out.values())} trajectories.")
    for reason, count in done.left_out.items():
        say(f"Left out: {count} {reason}.")
    return 0
