"""One run: a schedule is carried out and its delivery log checked.

Invariant: whatever happens, a run ends with a result. What is left when its time is over is lost, and said so.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos import history
from tests.chaos.checker import Verdict, Violation, check
from tests.chaos.history import Delivery
from tests.chaos.inject import Injected, Injector
from tests.chaos.lab import Lab
from tests.chaos.schedule import Schedule
from tests.chaos.user import UserEndpoint

_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Result:
    """What one run showed."""

    schedule: Schedule
    verdict: Verdict
    injected: int
    missed: int
    resumed: int
    """How many times a new client went on."""
    recovery: tuple[float, ...]
    """For each fault of a process: seconds until the first delivery after it."""
    pause: float
    """Longest time in seconds between two deliveries."""
    seconds: float


class Runner:
    """Runs schedules in a lab. Calm runs are kept, as one serves many schedules."""

    def __init__(self, lab: Lab, user: UserEndpoint, folder: Path, patience: float) -> None:
        """
        Args:
            folder: where the logs go.
            patience: seconds without a delivery after which a run is stuck.
        """
        self._lab = lab
        self._user = user
        self._folder = folder
        self._patience = patience

    def run(self, schedule: Schedule) -> Result:
        """Carry a schedule out and check it."""
        calm = self.calm(schedule)
        begun = time.monotonic()
        came, injector, resumed, trouble = self._carry_out(schedule)
        verdict = check(calm, came)
        verdict = replace(verdict, violations=(*trouble, *verdict.violations))
        seconds = time.monotonic() - begun
        recovery = tuple(_recovery(injector.came, came))
        return Result(
            schedule, verdict, len(injector.came), injector.missed, resumed, recovery, _longest_pause(came), seconds
        )

    def log(self, schedule: Schedule) -> Path:
        """Path of the schedule's delivery log."""
        return self._folder / f"{schedule.name}.jsonl"

    def calm(self, schedule: Schedule) -> list[Delivery]:
        """The calm run of the schedule's collection.

        Raises:
            RuntimeError: it did not go well, so nothing can be compared with it.
        """
        calm = schedule.calm
        path = self._folder / f"calm-{calm.selection}-{calm.episodes}-{calm.group_size}.jsonl"
        came = history.read(path)
        if len(came) != calm.episodes:
            path.unlink(missing_ok=True)
            came, _, _, trouble = self._carry_out(calm, path)
            if trouble or len(came) != calm.episodes:
                raise RuntimeError(f"The calm run failed: {len(came)} of {calm.episodes} came. {trouble}")
        return came

    def _carry_out(
        self, schedule: Schedule, path: Path | None = None
    ) -> tuple[list[Delivery], Injector, int, list[Violation]]:
        log = path or self.log(schedule)
        log.unlink(missing_ok=True)
        self._user.begin(schedule)
        injector = Injector(schedule.faults, self._lab.processes, self._user.inject)
        resumed, trouble = 0, []
        self._lab.order(schedule, log)
        delivered, moved = 0, time.monotonic()
        while True:
            time.sleep(_POLL_SECONDS)
            if (count := _lines(log)) != delivered:
                delivered, moved = count, time.monotonic()
            injector.step(delivered, time.time())
            ended = self._lab.ended()
            if ended == "":
                break
            if ended is not None:
                if not schedule.interrupts:
                    trouble.append(Violation("broken", f"the stream ended after {delivered}: {ended}"))
                    break
                resumed += 1  # a new client goes on with what the log lacks
                self._lab.order(schedule, log)
                moved = time.monotonic()
            elif time.monotonic() - moved > self._patience:
                trouble.append(Violation("stuck", f"nothing came for {self._patience:.0f} s after {delivered}"))
                break
        injector.finish()
        if trouble:
            self._lab.kill("client", "cluster")  # the next run must not suffer from this one
        return history.read(log), injector, resumed, trouble


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _longest_pause(came: list[Delivery]) -> float:
    times = sorted(delivery.at for delivery in came)
    return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def _recovery(injected: list[Injected], came: list[Delivery]) -> list[float]:
    """Seconds from each fault of a process to the first delivery after it; faults after the last one are left out."""
    times = sorted(delivery.at for delivery in came)
    waits = []
    for each in injected:
        after = next((at for at in times if at > each.at), None)
        if each.fault.target != "user" and after is not None:
            waits.append(after - each.at)
    return waits
