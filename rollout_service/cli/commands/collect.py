"""`collect`: a collection from the command line.

Invariant: an existing output file is replaced only once the service has accepted the collection, and what was written
is kept when the collection fails.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from rollout_service.cli.options import Config, Domain, Settings, Split, Tokenizer, read_settings
from rollout_service.cli.stderr import say
from rollout_service.errors import ConfigError, ServiceError


def collect(
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="Episodes. Default: every task once, times group size.")
    ] = None,
    group_size: Annotated[int, typer.Option(help="Episodes per task.")] = 1,
    domain: Domain = None,
    split: Split = None,
    task: Annotated[list[str] | None, typer.Option(help="A task id. Repeat it for more.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes tasks and episodes repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to store: .jsonl or .parquet.")] = None,
    append: Annotated[bool, typer.Option(help="Add to the output if it exists.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
    address: Annotated[str | None, typer.Option(help="A Ray cluster: auto, or its address. Default: embedded.")] = None,
    start: Annotated[bool, typer.Option(help="With --address: start the service there if it does not run.")] = False,
    tokenizer: Tokenizer = None,
    config: Config = None,
    settings: Settings = None,
) -> int:
    """Collect episodes: progress on stderr, a table at the end, trajectories in the output file."""
    from rollout_service.cli.report import print_summary
    from rollout_service.client import RolloutClient
    from rollout_service.collecting.progress import CollectionProgress
    from rollout_service.collecting.request import CollectionRequest
    from rollout_service.record.storage import check_path

    _check_output(output, append, overwrite)
    if start and address is None:
        raise ConfigError("--start goes with --address.", "Leave it out: without an address a service is started.")
    CollectionRequest(n=n, group_size=group_size, seed=seed)  # checks them before a service is started
    loaded = read_settings(config, settings, tokenizer, domain, split, task)
    if output is not None:
        check_path(output, may_exist=append or overwrite)
    say("Starting the service …" if address is None or start else f"Connecting to {address} …")
    with (
        RolloutClient(address, config=loaded, start=None if address is None else start) as client,
        contextlib.closing(client.stream(n, group_size=group_size, seed=seed)) as stream,
        _writer(output, append, overwrite) as writer,
        CollectionProgress(stream.episodes) as progress,
    ):
        try:
            for group in stream:
                if writer is not None:
                    writer.append(group)
                progress.add(group)
        except (KeyboardInterrupt, ServiceError):
            if writer is not None:
                say(f"{writer.count} trajectories are in {output}.")
            raise
    print_summary(progress.summary, progress.seconds, where=output)
    return 1 if any(domain.outcomes["aborted"] for domain in progress.summary.domains.values()) else 0


def _check_output(output: Path | None, append: bool, overwrite: bool) -> None:
    if append and overwrite:
        raise ConfigError(
            "--append and --overwrite exclude each other.",
            "Leave out one of them.",
        )
    if output is None and (append or overwrite):
        name = "--append" if append else "--overwrite"
        raise ConfigError(f"{name} is given, but no --output.", "Name the file, or leave it out.")


def _writer(output: Path | None, append: bool, overwrite: bool) -> contextlib.AbstractContextManager[Any]:
    """The output file, opened only once the collection was accepted: a refusal must not cost an existing file."""
    from rollout_service.record.storage import TrajectoryWriter

    if output is None:
        return contextlib.nullcontext()
    if overwrite:
        _remove(output)
    return TrajectoryWriter(output, append=append)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
