"""`tasks`: the domains with their splits, or the tasks of a split.

Invariant: nothing but ids is printed for a split, so that other programs can read them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rollout_service.errors import ConfigError


def tasks(
    domain: Annotated[str | None, typer.Option(help="List its tasks; without it, the domains.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of the domain. Default: base.")] = None,
) -> None:
    """List domains with their splits, or the tasks of one split."""
    from rich.console import Console
    from rich.table import Table

    import rollout_service.tau2.tasks as tau2_tasks

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
