"""Shows a person the progress of a collection.

Invariant: it is written to stderr, so that stdout can be piped. A terminal shows a bar; a log gets a line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Self

from rollout_service.record.statistics import Summary
from rollout_service.record.trajectory import Trajectory

_LINE_SECONDS = 10.0
"""Least time between two lines of a log."""


class CollectionProgress:
    """Progress over the episodes of one collection, and their summary."""

    def __init__(self, total: int, *, enabled: bool = True, earlier: CollectionProgress | None = None) -> None:
        """
        Args:
            earlier: progress of the same collection that this one goes on from.
        """
        self.summary: Summary = Summary() if earlier is None else earlier.summary
        self._total = total + self.summary.episodes
        self._enabled = enabled
        self._last_line = time.perf_counter()
        self._start: float = self._last_line if earlier is None else earlier._start
        self._end: float | None = None
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("episodes"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("episodes", total=self._total, completed=self.summary.episodes, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = time.perf_counter()
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Duration of the collection; while it runs, until now."""
        return (self._end or time.perf_counter()) - self._start

    def add(self, group: Sequence[Trajectory]) -> None:
        """Count a finished group."""
        for trajectory in group:
            self.summary.add(trajectory)
        done = self.summary.episodes
        note = f"{done / max(self.seconds, 1e-9) * 60:.0f}/min"
        if unscored := done - self.summary.scored:
            note += f", {unscored} without a reward"
        if self._bar is not None:
            self._bar.update(self._task, advance=len(group), note=note)
        elif self._enabled and (time.perf_counter() - self._last_line >= _LINE_SECONDS or done == self._total):
            self._last_line = time.perf_counter()
            print(f"{done}/{self._total} episodes, {note}", file=sys.stderr, flush=True)
