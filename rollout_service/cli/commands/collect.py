"""`collect`: a collection from the command line.

Invariant: an existing output file is changed only once the service has accepted the collection, and what was written
is kept when the collection fails.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from rollout_service.cli.options import Config, Domain, Settings, Split, Tokenizer, read_settings
from rollout_service.cli.stderr import say
from rollout_service.config import RolloutConfig
from rollout_service.errors import ConfigError, ServiceError


def collect(
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="Episodes. Default: every task once, times group size.")
    ] = None,
    group_size: Annotated[int | None, typer.Option(help="Episodes per task. Default: 1.")] = None,
    domain: Domain = None,
    split: Split = None,
    task: Annotated[list[str] | None, typer.Option(help="A task id. Repeat it for more.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes tasks and episodes repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to store: .jsonl or .parquet.")] = None,
    append: Annotated[bool, typer.Option(help="Add other tasks and seeds to the output if it exists.")] = False,
    resume: Annotated[bool, typer.Option(help="Complete what was begun in the output, if it exists.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the output, once the first group is there.")] = False,
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
    from rollout_service.output import Output

    mode = _mode(output, append=append, resume=resume, overwrite=overwrite)
    if start and address is None:
        raise ConfigError("--start goes with --address.", "Leave it out: without an address a service is started.")
    loaded = read_settings(config, settings, tokenizer, domain, split, task)
    file = None if output is None else Output(output, mode)
    asked = _asked(file, loaded, loaded, n, group_size, seed)  # refused here, before a service is started
    if file is not None and file.is_complete:
        say(f"{output} has all {file.stored} episodes of its collection already.")
        return 0
    say("Starting the service …" if address is None or start else f"Connecting to {address} …")
    with RolloutClient(address, config=loaded, start=None if address is None else start) as client:
        asked = _asked(file, loaded, client.config, n, group_size, seed)
        with (
            contextlib.closing(client.stream(**asked)) as stream,
            contextlib.nullcontext() if file is None else file.writing(stream, asked) as writer,
            CollectionProgress(stream.episodes) as progress,
        ):
            if file is not None and mode == "resume" and file.stored:
                say(f"{output} has {file.stored} episodes of {file.stored + stream.episodes}.{_lost(file.aborted)}")
            try:
                for group in stream:
                    if writer is not None:
                        writer.append(group)
                    progress.add(group)
            except (KeyboardInterrupt, ServiceError):
                if writer is not None:
                    say(f"{writer.count} trajectories are in {output}." if writer.count else f"{output} is as it was.")
                raise
    print_summary(progress.summary, progress.seconds, where=output)
    return 1 if any(domain.outcomes["aborted"] for domain in progress.summary.domains.values()) else 0


def _lost(aborted: int) -> str:
    return f" {aborted} of them were aborted, and are not played again." if aborted else ""


def _mode(output: Path | None, **flags: bool) -> Any:
    """The mode of the output file."""
    given = [name for name, flag in flags.items() if flag]
    names = " and ".join(f"--{name}" for name in given)
    if len(given) > 1:
        raise ConfigError(f"{names} exclude each other.", "Give one of them.")
    if given and output is None:
        raise ConfigError(f"{names} is given, but no --output.", "Name the file, or leave it out.")
    return given[0] if given else "new"


def _asked(
    file: Any, own: RolloutConfig, running: RolloutConfig, n: int | None, group_size: int | None, seed: int | None
) -> dict[str, Any]:
    """The arguments of `RolloutClient.stream`."""
    import rollout_service.attaching as attaching

    if file is not None:
        asked: dict[str, Any] = file.ask(own, running, n=n, group_size=group_size, seed=seed)
        return asked
    size = 1 if group_size is None else group_size
    attaching.collection_request(own, running, {"seed": seed}, n=n, group_size=size)
    return {"n": n, "group_size": size, "seed": seed}
