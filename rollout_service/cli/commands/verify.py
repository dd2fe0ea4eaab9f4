"""`verify`: an audit of a file of trajectories.

Invariant: every trajectory that can be read is audited, also after one that cannot; a file without any is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rollout_service.errors import ConfigError, StorageError


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
    finally:  # shows what was found before a disk failed, too
        if ours:
            print_audit(audited, violations, wanted, show)
    if not ours:
        raise first_error
    return 1 if violations else 0
