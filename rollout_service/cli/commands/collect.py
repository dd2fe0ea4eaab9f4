"""`collect`: a collection from the command line.

Invariant: an existing output file is changed only once the service has accepted the collection, and what was written
is kept when the collection fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rollout_service.cli.options import Config, Domain, Settings, Split, Tokenizer, read_limits, read_settings
from rollout_service.cli.stderr import say
from rollout_service.config import RolloutConfig
from rollout_service.errors import BudgetReached, ConfigError, ServiceError


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
    budget: Annotated[
        list[str] | None,
        typer.Option(help="A limit, e.g. --budget usd=5; also user_tokens, policy_tokens, episodes, wall_seconds."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Share of the slots, relative to other collections' weights. Default: 1.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster: auto, or its address; or a gateway: https://… Default: embedded.")
    ] = None,
    token_var: Annotated[
        str | None, typer.Option(help="With a gateway: NAME of the environment variable that holds its token.")
    ] = None,
    start: Annotated[bool, typer.Option(help="With --address: start the service there if it does not run.")] = False,
    tokenizer: Tokenizer = None,
    config: Config = None,
    settings: Settings = None,
) -> int:
    """Collect episodes: progress on stderr, a table at the end, trajectories in the output file."""
    from rollout_service.record.writing_lock import writing_lock

    mode = _mode(output, append=append, resume=resume, overwrite=overwrite)
    if start and address is None:
        raise ConfigError("--start goes with --address.", "Leave it out: without an address a service is started.")
    loaded = read_settings(config, settings, tokenizer, domain, split, task)
    chosen = {"n": n, "group_size": group_size, "seed": seed, "budget": read_limits(budget), "weight": weight}
    with contextlib.nullcontext() if output is None else writing_lock(output):
        return _collect(output, mode, loaded, chosen, address, token_var, start)


def _collect(
    output: Path | None,
    mode: Any,
    loaded: RolloutConfig,
    chosen: dict[str, Any],
    address: str | None,
    token_var: str | None,
    start: bool,
) -> int:
    """Collect as the command was told. Returns its exit code."""
    from rollout_service.cli.report import print_summary
    from rollout_service.client import RolloutClient
    from rollout_service.collecting.request import CollectionRequest
    from rollout_service.output import Output

    file = None if output is None else Output(output, mode)
    if file is not None and (address is None or start):
        loaded = file.dated(loaded)
    if address is None:
        _asked(file, loaded, loaded, chosen)  # refused here, before a service is started
    else:  # that service's settings are not known yet
        size = 1 if chosen["group_size"] is None else chosen["group_size"]
        CollectionRequest(n=chosen["n"], group_size=size, seed=chosen["seed"], weight=chosen["weight"])
    if file is not None and file.is_complete:
        say(f"{output} has all {file.stored} episodes of its collection already.")
        return 0
    say("Starting the service …" if address is None or start else f"Connecting to {address} …")
    begin = None if address is None else start
    with RolloutClient(address, config=loaded, start=begin, token_var=token_var) as client:
        progress, limit = _play(client, file, loaded, chosen)
    replayed = client.config.tape.asks_nobody
    print_summary(progress.summary, progress.seconds, where=output, limit=limit, is_replayed=replayed)
    return 1 if limit or any(domain.outcomes["aborted"] for domain in progress.summary.domains.values()) else 0


def _play(client: Any, file: Any, own: RolloutConfig, chosen: Mapping[str, Any]) -> tuple[Any, str]:
    """Collect, into the file if there is one. Returns the progress, and the budget's limit that ended it early, if one
    did."""
    from rollout_service.output import Output

    asked, earlier = _asked(file, own, client.config, chosen), None
    if file is not None and (stream := _reopened(client, file, chosen)) is not None:
        earlier, _ = _read(stream, file, asked, is_reopened=True)  # without the first collection's budget it goes on
        file = Output(file.path, "resume")
        if file.is_complete:
            return earlier, ""
        asked = _asked(file, own, client.config, chosen)
    return _read(client.stream(**asked), file, asked, earlier)


def _reopened(client: Any, file: Any, chosen: Mapping[str, Any]) -> Any:
    """A stream of the file's last collection where the service's journal has it open, so that what is finished is not
    played again; None: it has not, or the rest is to have a budget or a weight of its own."""
    own = chosen["budget"] or chosen["weight"] is not None
    if file.collection_id is None or client.config.service.journal is None or own:
        return None
    try:
        return client.reopen(file.collection_id)
    except ServiceError:
        return None


def _read(
    stream: Any, file: Any, asked: dict[str, Any], earlier: Any = None, *, is_reopened: bool = False
) -> tuple[Any, str]:
    """Read the stream, into the file if there is one. Returns as `_play`.

    Args:
        earlier: progress of what was read before.
        is_reopened: whether it may give what the file has already.
    """
    from rollout_service.collecting.progress import CollectionProgress

    with (
        contextlib.closing(stream),
        contextlib.nullcontext() if file is None else file.writing(stream, asked) as writer,
        CollectionProgress(file.left if is_reopened else stream.episodes, earlier=earlier) as progress,
    ):
        stream.tell = progress.waits
        if file is not None and (file.stored or file.aborted):
            say(f"{file.path} has {file.stored} episodes of {file.stored + file.left}.{_lost(file.aborted)}")
        try:
            for group in stream:
                came = file.lacking(group) if is_reopened else group
                if writer is not None and came:
                    writer.append(came)
                progress.add(came)
        except BudgetReached as error:
            return progress, error.problem
        except (KeyboardInterrupt, ServiceError):
            if writer is not None:
                is_old = writer.written != file.path  # the file that was to be overwritten still has its place
                say(f"{file.path} is as it was." if is_old else f"{writer.count} trajectories are in {file.path}.")
            raise
    return progress, ""


def _lost(aborted: int) -> str:
    return f" {aborted} that were aborted are played again." if aborted else ""


def _mode(output: Path | None, **flags: bool) -> Any:
    """The mode of the output file."""
    given = [name for name, flag in flags.items() if flag]
    names = " and ".join(f"--{name}" for name in given)
    if len(given) > 1:
        raise ConfigError(f"{names} exclude each other.", "Give one of them.")
    if given and output is None:
        raise ConfigError(f"{names} is given, but no --output.", "Name the file, or leave it out.")
    return given[0] if given else "new"


def _asked(file: Any, own: RolloutConfig, running: RolloutConfig, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `RolloutClient.stream`."""
    import rollout_service.attaching as attaching
    import rollout_service.preflight as preflight

    asked = {**chosen, "group_size": 1 if chosen["group_size"] is None else chosen["group_size"]}
    selection = {name: asked[name] for name in ("seed", "budget", "weight")}
    request = attaching.collection_request(own, running, selection, n=asked["n"], group_size=asked["group_size"])
    if request.budget is not None:
        preflight.check_price(running, request.budget)
    return asked if file is None else file.ask(own, running, **chosen)
