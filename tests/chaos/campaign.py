"""Campaign: many schedules, carried out by several jobs at a time.

Invariant: each schedule gives one result, or one reason why it could not be carried out. A job that dies takes nothing
along: its schedule is given to another one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from tests.chaos.process import Process
from tests.chaos.results import Result
from tests.chaos.schedule import Schedule

_APART_SECONDS = 2.0
"""Time between the starts of two jobs: a start takes a core for seconds, and Ray gives up one that is too slow."""

_POLL_SECONDS = 0.05


class Campaign:
    """Carries schedules out. Use it in a `with` block, which ends the jobs."""

    def __init__(self, folder: Path, jobs: int, *arguments: str, module: str = "tests.chaos.job") -> None:
        """
        Args:
            folder: where results and logs go.
            jobs: how many at a time.
            arguments: of each job, after the folder and its number.
            module: what a job runs.
        """
        self._folder, self._most, self._arguments, self._module = folder, jobs, arguments, module
        self._jobs: list[Process] = []
        self._busy: dict[Process, Schedule] = {}
        self._started = 0
        self._last_start = -_APART_SECONDS

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *error: object) -> None:
        for job in self._busy:
            job.interrupt()
        for job in self._jobs:
            job.end(60.0)

    def run(self, schedules: Iterable[Schedule]) -> Iterator[tuple[Schedule, Result | str]]:
        """Give each schedule's result as it comes, or why it could not be carried out.

        Raises:
            RuntimeError: too many jobs died.
        """
        waiting = deque(schedules)
        while waiting or self._busy:
            self._start(len(waiting))
            for job in self._jobs:
                if job in self._busy and (said := job.heard()) is not None:
                    schedule = self._busy.pop(job)
                    yield schedule, Result.from_dict(said["result"]) if "result" in said else str(said["failed"])
                elif not job.runs:
                    if job in self._busy:
                        waiting.append(self._busy.pop(job))
                elif job not in self._busy and waiting:
                    self._busy[job] = waiting.popleft()
                    job.say(asdict(self._busy[job]))
            time.sleep(_POLL_SECONDS)

    def _start(self, waiting: int) -> None:
        """Start another job if there is work for it."""
        dead = [job for job in self._jobs if not job.runs and job not in self._busy]
        self._jobs = [job for job in self._jobs if job not in dead]
        idle = len(self._jobs) - len(self._busy)
        if len(self._jobs) >= self._most or waiting <= idle or time.monotonic() < self._last_start + _APART_SECONDS:
            return
        if self._started >= 3 * self._most:
            raise RuntimeError(f"{self._started} jobs were started, and most of them died:\n{dead[-1].errors}")
        number, self._last_start = self._started, time.monotonic()
        self._started += 1
        self._jobs.append(Process(self._module, self._folder, str(self._folder), str(number), *self._arguments))
