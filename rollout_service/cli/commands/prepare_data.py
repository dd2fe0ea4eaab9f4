"""`prepare-data`: prompts for trainers that read their own.

Invariant: a row names one task, and nothing else of the benchmark is copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rollout_service.cli.stderr import say


def prepare_data(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write: .jsonl for slime, .parquet for verl.")
    ],
    domain: Annotated[list[str], typer.Option(help="A domain. Repeat it for more.")],
    split: Annotated[list[str] | None, typer.Option(help="A split. Repeat it for more. Default: train.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
) -> None:
    """Write the tasks of splits as prompts for slime or verl, a row each."""
    from rollout_service.adapters.prompts import prepare_data as write

    count = write(output, domain, split or ["train"], overwrite=overwrite)
    say(f"{count} prompts are in {output}.")
