"""`collect`: a collection from the command line.

Invariant: an existing output file is changed only once the service has accepted the collection, and what was written
is kept when the collection fails.
"""

from __future__ import annotations

from typing import Annotated

import typer

import rollout_service.cli.playing as playing
from rollout_service.cli.options import Domain, OutputFile, Split
from rollout_service.cli.play_options import PlayOptions, with_play_options


@with_play_options
def collect(
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="Episodes. Default: every task once, times group size.")
    ] = None,
    group_size: Annotated[int | None, typer.Option(help="Episodes per task. Default: 1.")] = None,
    domain: Domain = None,
    split: Split = None,
    task: Annotated[list[str] | None, typer.Option(help="A task id. Repeat it for more.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes tasks and episodes repeatable.")] = None,
    output: OutputFile = None,
    append: Annotated[bool, typer.Option(help="Add other tasks and seeds to the output if it exists.")] = False,
    resume: Annotated[bool, typer.Option(help="Complete what was begun in the output, if it exists.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the output, once the first group is there.")] = False,
    *,
    options: PlayOptions,
) -> int:
    """Collect episodes: progress on stderr, a table at the end, trajectories in the output file."""
    from rollout_service.cli.report import print_summary
    from rollout_service.cli.stderr import say

    how = playing.mode(output, append=append, resume=resume, overwrite=overwrite)
    place = options.place()
    loaded = options.read_settings(domain, split, task)
    chosen = {"n": n, "group_size": group_size, "seed": seed, **options.chosen()}
    with playing.opened(output, how) as file:
        played = playing.play(place, file, loaded, chosen)
    if played.progress is None:
        return 0
    summary, limit = played.progress.summary, played.limit
    replayed = played.config.tape.asks_nobody
    print_summary(summary, played.progress.seconds, where=output, limit=limit, is_replayed=replayed)
    if withheld := played.progress.withheld:
        say(f"{withheld} episodes are left out, in groups with too few scored ones (min_group_size).")
    return playing.exit_code(summary, limit, withheld)
