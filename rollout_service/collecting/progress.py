"""Shows a person the progress of a collection.

Invariant: it is written to stderr, so that stdout can be piped. A terminal shows a bar; a log gets a line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
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
        self.withheld = 0
        """Episodes of groups that were no data, which are not in the summary."""
        self._total = total + self.summary.episodes
        self._enabled = enabled
        self._dropped = 0
        self._last_line = time.perf_counter()
        self._start: float = self._last_line if earlier is None else earlier._start
        self._end: float | None = None
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            self._bar = _Bar(self._total, self.summary.episodes)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = time.perf_counter()
        if self._bar is not None:
            self._bar.show(self._done, self._note(), "")
            self._bar.live.stop()

    @property
    def seconds(self) -> float:
        """Duration of the collection; while it runs, until now."""
        return (self._end or time.perf_counter()) - self._start

    def add(self, group: Sequence[Trajectory], dropped: int = 0) -> None:
        """Count a finished group, before which a filter had dropped so many."""
        self._dropped = dropped
        for trajectory in group:
            self.summary.add(trajectory)
        self._came()

    def withhold(self, group: Sequence[Trajectory], reason: str) -> None:
        """Count a group that is no data, as `GroupStream.withheld` takes it."""
        self.withheld += len(group)
        self._came()

    @property
    def _done(self) -> int:
        return self.summary.episodes + self.withheld

    def _came(self) -> None:
        done = self._done
        if self._bar is not None:
            self._bar.show(done, self._note(), "")
        elif self._enabled and (time.perf_counter() - self._last_line >= _LINE_SECONDS or done == self._total):
            self._last_line = time.perf_counter()
            print(f"{done}/{self._total} episodes, {self._note()}", file=sys.stderr, flush=True)

    @property
    def waits(self) -> Callable[[str], None] | None:
        """Takes what the next group waits for, see `GroupStream.tell`; None: there is no bar to show it. A log gets
        such lines from the stream itself."""
        bar = self._bar
        return None if bar is None else lambda reason: bar.show(self._done, self._note(), reason)

    def _note(self) -> str:
        """The rate, the mean reward so far, and what went wrong."""
        summary, done = self.summary, self.summary.episodes
        parts = [f"{done / max(self.seconds, 1e-9) * 60:.0f}/min"]
        if summary.scored:
            parts.append(f"reward {sum(each.reward_sum for each in summary.domains.values()) / summary.scored:.3f}")
        if summary.faults:
            kinds = ", ".join(f"{kind} {count}" for kind, count in summary.faults.most_common())
            parts.append(f"faults: {kinds}")
        if self._dropped:
            parts.append(f"{self._dropped} groups dropped")
        if unscored := done - summary.scored:
            parts.append(f"{unscored} without a reward")
        if self.withheld:
            parts.append(f"{self.withheld} withheld (min_group_size)")
        return ", ".join(parts)


class _Bar:
    """What a terminal shows: the bar, under it the note, and then what is waited for. Each has lines of its own, so
    that a narrow terminal still has the count."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        self._progress = Progress(
            TextColumn("episodes"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("episodes", total=total, completed=done)
        self._note = Text()
        self._reason = Text(style="dim")
        self.live = Live(Group(self._progress, self._note, self._reason), console=Console(stderr=True))

    def show(self, done: int, note: str, reason: str) -> None:
        """Show how far it is, and what the next group waits for; an empty reason: none to be told."""
        self._progress.update(self._task, completed=done)
        self._note.plain = note
        self._reason.plain = f"waits for {reason}" if reason else ""
