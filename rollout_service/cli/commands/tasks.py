"""`tasks`: the domains with their splits, the tasks of a split, or an audit of them.

Invariant: nothing but ids is printed for a split, and nothing but JSON with --json, so that other programs can read
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rollout_service.cli.stderr import say
from rollout_service.errors import ConfigError


def tasks(
    domain: Annotated[
        str | None, typer.Option(help="List its tasks, or audit them; without it, the domains, or audit all of them.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split of the domain. Default: base.")] = None,
    audit: Annotated[
        bool, typer.Option(help="Score each task for a policy that does nothing, random calls, or the gold actions.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --audit: print JSON instead of tables.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="With --audit: what differs from this file, which --json made elsewhere.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="With --audit: processes. Default: one for each core, at most 8.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --audit: seed of the random calls. Default: 0.")] = None,
) -> int:
    """List domains with their splits, the tasks of one split, or audit tasks."""
    import rollout_service.tau2.tasks as tau2_tasks

    options = {"--json": as_json or None, "--against": against, "--jobs": jobs, "--seed": seed}
    given = [name for name, value in options.items() if value is not None]
    if given and not audit:
        raise ConfigError(f"{given[0]} goes with --audit.", "Leave it out, or add --audit.")
    if as_json and against is not None:
        raise ConfigError("--against and --json exclude each other.", "Leave out one of them.")
    if audit:
        return _audit(domain, split or tau2_tasks.WHOLE_SET, as_json, against, jobs, seed or 0)
    if domain is None:
        if split is not None:
            raise ConfigError("--split is given, but no --domain.", "Name the domain too.")
        _print_domains()
        return 0
    for reference in tau2_tasks.references(domain, split or tau2_tasks.WHOLE_SET):
        print(reference.task_id)
    return 0


def _print_domains() -> None:
    from rich.console import Console
    from rich.table import Table

    import rollout_service.tau2.tasks as tau2_tasks

    table = Table("domain", "splits (tasks)")
    for name in tau2_tasks.domains():
        sizes = {key: len(ids) for key, ids in tau2_tasks.splits(name).items()}
        table.add_row(name, "  ".join(f"{key} ({size})" for key, size in sorted(sizes.items())))
    Console().print(table)


def _audit(domain: str | None, split: str, as_json: bool, against: Path | None, jobs: int | None, seed: int) -> int:
    """Audit the tasks of the domain, or of all that have such a split. Returns 1 if one could not be scored."""
    import rollout_service.tau2.tasks as tau2_tasks
    from rollout_service.audit import task_audit
    from rollout_service.cli.audit_report import print_audits, print_differences

    other = None if against is None else _read(against)
    names = [domain] if domain else [name for name in tau2_tasks.domains() if split in tau2_tasks.splits(name)]
    references = [reference for name in names for reference in tau2_tasks.references(name, split)]
    workers = jobs or min(task_audit.usable_cores(), 8, -(-len(references) // 8))
    say(f"Auditing {len(references)} tasks of {', '.join(names)} in {workers} process{'es' * (workers > 1)} …")
    audits = list(task_audit.audit_tasks(references, seed=seed, jobs=workers))
    report = task_audit.report(audits)
    if as_json:
        print(json.dumps(report, indent=1))
    elif other is not None:
        print_differences(report, other, task_audit.differences(report, other))
    else:
        print_audits(audits, report)
    return 1 if any(row.problem for row in audits) else 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--against {path} cannot be read: {error}.", "Name a file that --json made.") from error
