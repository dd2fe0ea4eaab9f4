"""`rescore`: stored trajectories scored again under the installed tasks.

Invariant: the given file stays as it is. Every trajectory that can be scored is in the new one, in the same order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rollout_service.cli.stderr import say
from rollout_service.errors import StorageError


def rescore(
    path: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file of trajectories.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The new file. Default: NAME.rescored.jsonl beside it.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Changed rewards to print.")] = 20,
) -> int:
    """Score stored trajectories again under the installed τ²-bench's tasks, into a new file. No judge is asked."""
    from rollout_service.audit.rescore import rescore as score_again
    from rollout_service.cli.rescore_report import print_rescored
    from rollout_service.record.storage import TrajectoryWriter, check_path, iterate

    target = output or path.with_name(f"{path.stem}.rescored{path.suffix}")
    stored = iterate(path)
    check_path(target)
    say(f"Scoring {path} again …")
    done = []
    with TrajectoryWriter(target) as writer:
        for found in score_again(stored):
            if found.after is not None:
                writer.append([found.after])
            done.append(found)
    if not done:
        raise StorageError(f"{path} holds no trajectory.", "Collect some first.")
    print_rescored(done, target, show)
    return 1 if any(found.problem for found in done) else 0
