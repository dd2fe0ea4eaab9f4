"""Runs pieces of work in several processes.

Invariant: the result of a piece is written to the file before the next one is waited for, and a piece whose result
stands there is not run again. So a run that was cut off goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def run(
    do: Callable[..., Any], pieces: Mapping[str, tuple[Any, ...]], *, jobs: int, file: Path | None = None
) -> dict[str, Any]:
    """The result of each piece, by its key, in the order of the pieces.

    Args:
        do: gives the result of a piece, a JSON value, from the piece's arguments.
        pieces: arguments by key. Equal keys must mean equal work, also in another run.
        jobs: number of processes.
        file: keeps the results, one a line; None: nothing is kept.
    """
    done = {key: result for key, result in _stored(file).items() if key in pieces}
    left = {key: arguments for key, arguments in pieces.items() if key not in done}
    started = time.monotonic()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(do, *arguments): key for key, arguments in left.items()}
        for number, future in enumerate(as_completed(running), 1):
            key = running[future]
            done[key] = future.result()
            if file is not None:
                with file.open("a", encoding="utf8") as lines:
                    lines.write(json.dumps([key, done[key]]) + "\n")
            print(f"{number} of {len(left)} pieces, {time.monotonic() - started:.0f} s: {key}", file=sys.stderr)
    return {key: done[key] for key in pieces}


def _stored(file: Path | None) -> dict[str, Any]:
    if file is None or not file.exists():
        return {}
    results = {}
    for line in file.read_text(encoding="utf8").splitlines():
        try:
            key, result = json.loads(line)
        except ValueError:  # the run ended while it wrote this line
            continue
        results[key] = result
    return results
