"""One run: a schedule is carried out and its delivery log checked.

Invariant: whatever happens, a run ends with a result. What is left when its time is over is lost, and said so.
"""

from __future__ import annotations

import fcntl
import itertools
import time
from pathlib import Path

from tests.chaos import history
from tests.chaos.checker import Violation, check, lengths
from tests.chaos.history import Delivery
from tests.chaos.inject import Injected, Injector
from tests.chaos.lab import Lab
from tests.chaos.results import Result
from tests.chaos.schedule import Schedule
from tests.chaos.user import UserEndpoint

_POLL_SECONDS = 0.02


class Runner:
    """Runs schedules in a lab. Calm runs are kept in the folder, as one serves many schedules and all jobs."""

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
        """Carry a schedule out and check it. Its delivery log is kept if something was violated.

        Raises:
            RuntimeError: the calm run did not go well, so nothing can be compared with it.
        """
        begun = time.monotonic()
        log = self._folder / f"{schedule.name}.jsonl"
        came, injector, resumed, trouble = self._carry_out(schedule, log)
        seconds = time.monotonic() - begun
        verdict = check(self._calm(schedule), came)
        violations = (*trouble, *verdict.violations)
        if schedule.gives_up_none:
            violations += tuple(Violation("given up", f"{d.fault}: {d.identity}") for d in came if d.reported)
        if not violations:
            log.unlink(missing_ok=True)
        return Result(
            schedule,
            len(injector.came),
            injector.missed,
            resumed,
            verdict.delivered,
            verdict.reported,
            verdict.probability,
            violations,
            tuple(lengths(came).tolist()),
            tuple(_recovery(injector.came, came)),
            _longest_pause(came),
            seconds,
            self._lab.session,
        )

    def _calm(self, schedule: Schedule) -> list[Delivery]:
        """The calm run of the schedule's collection. Only one job makes it; the others wait for that."""
        path = calm_log(self._folder, schedule)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            came = history.read(path)
            if len(came) != schedule.episodes:
                path.unlink(missing_ok=True)
                came, _, _, trouble = self._carry_out(schedule.calm, path)
                if trouble or len(came) != schedule.episodes:
                    raise RuntimeError(f"The calm run failed: {len(came)} of {schedule.episodes} came. {trouble}")
        return came

    def _carry_out(self, schedule: Schedule, log: Path) -> tuple[list[Delivery], Injector, int, list[Violation]]:
        log.unlink(missing_ok=True)
        self._user.begin(schedule)
        injector = Injector(schedule.faults, self._lab.processes, self._user.inject)
        resumed, trouble = 0, []
        self._lab.order(schedule, log)
        delivered, moved = 0, time.monotonic()
        while True:
            time.sleep(_POLL_SECONDS)
            if (count := history.count(log)) != delivered:
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


def calm_log(folder: Path, schedule: Schedule) -> Path:
    """Where the calm run of the schedule's collection is kept."""
    return folder / f"calm-{schedule.selection}-{schedule.episodes}-{schedule.group_size}.jsonl"


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
