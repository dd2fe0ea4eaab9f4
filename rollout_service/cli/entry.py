"""The command line: `rollout-service collect | tasks | verify | doctor | size | prepare-data`.

Invariant: results go to stdout, everything else to stderr; an error is one paragraph that says what to do. Exit codes:
0 all is well; 1 the work was done but something in it failed (aborted episodes, violations, a failed check); 2 it could
not be done as asked; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rollout_service.config import RolloutConfig, parse_value
from rollout_service.errors import ConfigError, RolloutError, ServiceError, StorageError
from rollout_service.redaction import conceal, redact, shows_secret
from rollout_service.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="τ²-bench episodes at scale, as masked token trajectories. --traceback shows where an error was raised.",
)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, e.g. --set limits.max_turns=40. Repeat it for more.")
]
Domain = Annotated[
    str | None, typer.Option(help="A domain, or a mix with weights: retail=2,airline=1. Default: tasks.domain.")
]
Split = Annotated[str | None, typer.Option(help="train, test, base, … Default: tasks.split.")]
Tokenizer = Annotated[str | None, typer.Option(help="Folder or hub name of the policy's tokenizer.")]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in arguments
    try:
        code = app([a for a in arguments if a != "--traceback"], standalone_mode=False)
    except RolloutError as error:
        if show_traceback and not shows_secret(error):
            raise
        _say(f"Error: {error}")
        code = 2
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command line itself
            if hasattr(error, "message"):
                error.message = conceal(str(error.message))
            error.show()
            code = error.exit_code
        elif type(error).__name__ == "Abort" or (show_traceback and not shows_secret(error)):
            raise
        else:
            _say(f"Error: {type(error).__name__}: {error} (Run with --traceback to see where.)")
            code = 2
    sys.exit(code if isinstance(code, int) else 0)


@app.command()
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
    CollectionRequest(n=n, group_size=group_size, seed=seed)  # refused before a service is started
    loaded = _config(config, settings, domain, split, task, tokenizer)
    if output is not None:
        check_path(output, may_exist=append or overwrite)
    _say("Starting the service …" if address is None or start else f"Connecting to {address} …")
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
                _say(f"{writer.count} trajectories are in {output}.")
            raise
    print_summary(progress.summary, progress.seconds, where=output)
    return 1 if any(domain.outcomes["aborted"] for domain in progress.summary.domains.values()) else 0


def _check_output(output: Path | None, append: bool, overwrite: bool) -> None:
    if append and overwrite:
        raise ConfigError("--append and --overwrite: the one keeps what the other replaces.", "Leave out one of them.")
    if output is None and (append or overwrite):
        name = "--append" if append else "--overwrite"
        raise ConfigError(f"{name} is given, but no --output.", "Name the file, or leave it out.")


def _writer(output: Path | None, append: bool, overwrite: bool) -> contextlib.AbstractContextManager[Any]:
    """Opened only once the collection was accepted: what is refused must not cost the file that is there."""
    from rollout_service.record.storage import TrajectoryWriter

    if output is None:
        return contextlib.nullcontext()
    if overwrite:
        _remove(output)
    return TrajectoryWriter(output, append=append)


@app.command()
def tasks(
    domain: Annotated[str | None, typer.Option(help="List its tasks; without it, the domains.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of the domain. Default: base.")] = None,
) -> None:
    """List domains with their splits, or the tasks of one split."""
    from rich.console import Console
    from rich.table import Table

    from rollout_service.tau2 import tasks as tau2_tasks

    if domain is None:
        if split is not None:
            raise ConfigError("--split is given, but no --domain.", "Name the domain too.")
        table = Table("domain", "splits (tasks)")
        for name in tau2_tasks.domains():
            sizes = {key: len(ids) for key, ids in tau2_tasks.splits(name).items()}
            table.add_row(name, "  ".join(f"{key} ({size})" for key, size in sorted(sizes.items())))
        Console().print(table)
        return
    for reference in tau2_tasks.references(domain, split or tau2_tasks.WHOLE_SET):
        print(reference.task_id)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file of trajectories.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub name of the tokenizer, if the file names no folder of this machine."),
    ] = None,
    check: Annotated[
        list[str] | None, typer.Option(help="Only this check: record, tokens, prefix, messages, reward.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Violations to print.")] = 20,
) -> int:
    """Audit stored trajectories: records, tokens, prefixes, messages and rewards. Needs neither Ray nor a GPU."""
    from rollout_service.audit.verify import CHECKS
    from rollout_service.audit.verify import verify as audit
    from rollout_service.cli.report import print_audit
    from rollout_service.record.storage import Unreadable, salvage

    unknown = sorted(set(check or []) - set(CHECKS))
    if unknown:
        raise ConfigError(f"--check: there is no check {unknown[0]!r}.", f"Choose from {', '.join(CHECKS)}.")
    wanted = [name for name in CHECKS if name == "record" or name in (check or CHECKS)]
    audited, ours, violations = 0, 0, []
    first_error = StorageError(f"{path} holds no trajectory.", "Collect some first.")
    try:
        for item, found in audit(salvage(path), tokenizer=tokenizer, checks=wanted):
            if not isinstance(item, Unreadable) or item.record is not None:
                ours += 1
            elif not audited:
                first_error = item.error
            audited += 1
            violations += found
    finally:  # what was found before the disk failed is worth knowing too
        if ours:
            print_audit(audited, violations, wanted, show)
    if not ours:
        raise first_error
    return 1 if violations else 0


@app.command()
def doctor(
    address: Annotated[str | None, typer.Option(help="Also look at this Ray cluster.")] = None,
    config: Config = None,
    settings: Settings = None,
    tokenizer: Tokenizer = None,
) -> int:
    """Check this machine and the settings, one line for each thing that a collection needs."""
    from rollout_service.cli.doctor import examine
    from rollout_service.cli.report import print_findings

    findings = examine(_config(config, settings, None, None, None, tokenizer), address)
    print_findings(findings)
    return 0 if all(finding.ok for finding in findings) else 1


@app.command()
def size(
    model: Annotated[Path, typer.Option(help="Folder of the model; only its config.json is read.")],
    gpu_memory: Annotated[float, typer.Option(help="GiB of one GPU.")],
    episodes: Annotated[int, typer.Option(help="Episodes in flight.")],
    context: Annotated[int, typer.Option(help="Tokens of an episode at its end.")],
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share one replica.")] = 1,
    memory_fraction: Annotated[float, typer.Option(help="Of a GPU's memory, for weights and cache.")] = 0.85,
) -> None:
    """Say how many replicas and environment actors keep so many episodes in flight. Starts nothing."""
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


@app.command("prepare-data")
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
    _say(f"{count} prompts are in {output}.")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _config(
    path: Path | None,
    settings: list[str] | None,
    domain: str | None,
    split: str | None,
    ids: list[str] | None,
    tokenizer: str | None,
) -> RolloutConfig:
    overrides: dict[str, Any] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            missing = "name before the '='" if equals else "'='"
            raise ConfigError(f"--set {setting}: there is no {missing}.", "Write --set section.field=value.")
        overrides[name] = parse_value(value, f"value of --set {name}")
    given: dict[str, Any] = {
        "tasks.domain": domain,
        "tasks.split": split,
        "tasks.ids": ids or None,
        "policy.tokenizer": tokenizer,
    }
    given = {name: chosen for name, chosen in given.items() if chosen is not None}
    for name in given.keys() & overrides.keys():
        raise ConfigError(f"--set {name} is given, and an option that says the same.", "Leave out one of them.")
    overrides |= given
    if domain is not None:
        overrides.setdefault("tasks.ids", None)  # those of a file were meant for its own domain
    return RolloutConfig.load(path, overrides)


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)
