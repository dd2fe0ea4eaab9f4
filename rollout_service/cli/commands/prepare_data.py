"""`prepare-data`: prompts for trainers that read their own.

Invariant: a row names one task, and nothing else of the benchmark is copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rollout_service.cli.options import Config
from rollout_service.cli.stderr import say
from rollout_service.config import RolloutConfig


def prepare_data(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write: .jsonl for slime, .parquet for verl.")
    ],
    domain: Annotated[list[str], typer.Option(help="A domain. Repeat it for more.")],
    split: Annotated[list[str] | None, typer.Option(help="A split. Repeat it for more. Default: train.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
    config: Config = None,
) -> None:
    """Write the tasks of splits as prompts for slime or verl, a row each. With --config, tasks that the settings leave
    out are left out."""
    from rollout_service.adapters.prompts import prepare_data as write

    settings = None if config is None else RolloutConfig.load(config)
    count = write(output, domain, split or ["train"], overwrite=overwrite, config=settings)
    say(f"{count} prompts are in {output}.")
