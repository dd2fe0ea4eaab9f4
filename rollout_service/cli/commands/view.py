"""`view`: one HTML file that shows stored trajectories.

Invariant: the files are only read. The page asks the network for nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from rollout_service.cli.stderr import say

_LINE_SECONDS = 5.0
"""Least time between two lines of progress."""


def view(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".jsonl or .parquet files of trajectories.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, which ends in .html.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub name of the tokenizer, if the file names no folder of this machine."),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this check of `verify`: record, tokens, prefix, messages, reward. Default: the first three, "
            "which need only the file."
        ),
    ] = None,
) -> int:
    """Write one HTML page that shows stored trajectories: conversations, checks, tokens, times. It needs no server."""
    from rollout_service.viewer.writer import FROM_THE_FILE_ALONE, write_page

    last = time.monotonic()

    def progress(count: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            say(f"{count:,} episodes read …")

    files = write_page(paths, output, tokenizer=tokenizer, checks=check or FROM_THE_FILE_ALONE, progress=progress)
    for file in files:
        if file.note:
            say(f"{file.name}: {file.note}")
        if file.unreadable:
            records = "1 record" if file.unreadable == 1 else f"{file.unreadable:,} records"
            say(f"{file.name}: {records} cannot be read; the page says why.")
    shown = sum(file.readable for file in files)
    episodes = "1 episode" if shown == 1 else f"{shown:,} episodes"
    typer.echo(f"{output}: {episodes}, {output.stat().st_size / 1e6:.1f} MB")
    return 1 if any(file.unreadable for file in files) else 0
