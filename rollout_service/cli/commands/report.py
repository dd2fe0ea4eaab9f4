"""`report`: what stored trajectories show, and two runs compared.

Invariant: files are read in a stream, and nothing is changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rollout_service.cli.stderr import say
from rollout_service.errors import ConfigError, StorageError


def report(
    files: Annotated[list[Path], typer.Argument(help="Files of trajectories, .jsonl or .parquet, of one run.")],
    against: Annotated[
        list[Path] | None, typer.Option(help="A file of the run to compare with. Repeat it for more.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Only this domain.")] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="pass^1 to pass^k. Default: the trials of a task, at most 4.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Tasks to print.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the report into this file.html, as one page with plots.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plots into this folder.")] = None,
) -> None:
    """Report on stored trajectories: pass^k, outcomes, tool calls, checks, user simulator, tokens, time and cost."""
    from rollout_service.cli.report import print_summary
    from rollout_service.cli.run_report import print_tables
    from rollout_service.report import tables
    from rollout_service.report.comparison import Comparison
    from rollout_service.report.page import page
    from rollout_service.report.plots import check_can_plot, write_png
    from rollout_service.report.run import Run

    if png is not None:
        check_can_plot("--png")
    if html is not None and (html.suffix != ".html" or html.is_dir()):
        what = "is a folder" if html.is_dir() else "does not end in .html"
        raise ConfigError(f"--html {html} {what}.", "Name a file, such as report.html.")
    run = Run.of(files, domain=domain, k=k)
    found = None if not against else Comparison(run, Run.of(against, domain=domain, k=k))
    if html is not None:
        _write(html, page(run, found))
        say(f"The report is in {html}.")
    if png is not None:
        say(f"The plots are in {', '.join(map(str, write_png(run, png)))}.")
    if as_json:
        numbers = run.to_dict() | ({} if found is None else {"comparison": found.to_dict()})
        print(json.dumps(numbers, indent=1, ensure_ascii=False))
    elif html is None and png is None:
        print_summary(run.evaluation.summary, None)
        print_tables([*tables.of_evaluation(run.evaluation, show), *tables.of_run(run, show)])
        if found is not None:
            print_tables(tables.of_comparison(found, show))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}.", "Choose another file.") from error
