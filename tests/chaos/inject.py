"""The injector: brings a schedule's faults about while its collection runs.

Invariant: each fault comes once, not before its number of deliveries and its delay. A process that was halted for a
while goes on when its time is over, also if the collection ends before.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.schedule import Fault

_PATIENCE_SECONDS = 20.0
"""How long a fault waits for a process to hit: the last one may just have been killed."""


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that came."""

    fault: Fault
    at: float
    """Seconds since 1970."""


class Injector:
    """Injects the faults of one run. Call `step` often."""

    def __init__(
        self, faults: Sequence[Fault], processes: Callable[[str], list[int]], user: Callable[[Fault], None]
    ) -> None:
        """
        Args:
            processes: gives the ids of the processes of a target, in a steady order.
            user: lets the user simulator's endpoint fail.
        """
        self._waiting = list(faults)
        self._processes = processes
        self._user = user
        self._reached: dict[int, float] = {}
        """When each number of deliveries was reached."""
        self._halted: list[tuple[float, int]] = []
        """When which process goes on."""
        self.came: list[Injected] = []
        self.missed = 0
        """Faults for which there was no process to hit."""

    def step(self, delivered: int, now: float) -> None:
        """Inject what is due.

        Args:
            delivered: lines in the delivery log.
            now: seconds since 1970.
        """
        for until, process in [halted for halted in self._halted if halted[0] <= now]:
            self._halted.remove((until, process))
            _send(process, signal.SIGCONT)
        for fault in [fault for fault in self._waiting if fault.after <= delivered]:
            late = now - self._reached.setdefault(fault.after, now) - fault.delay
            if late < 0:
                continue
            came = self._inject(fault, now)
            if came or late > _PATIENCE_SECONDS:
                self._waiting.remove(fault)
                self.missed += not came

    def finish(self) -> None:
        """Let every halted process go on; what was not injected by now is missed."""
        for _, process in self._halted:
            _send(process, signal.SIGCONT)
        self._halted.clear()
        self.missed += len(self._waiting)
        self._waiting.clear()

    def _inject(self, fault: Fault, now: float) -> bool:
        """Whether there was something to hit."""
        if fault.target == "user":
            self._user(fault)
        else:
            found = self._processes(fault.target)
            if not found:
                return False
            chosen = found if fault.target == "cluster" else [found[fault.pick % len(found)]]
            for process in chosen:
                _send(process, signal.SIGSTOP if fault.how == "STOP" else signal.SIGKILL)
            if fault.seconds is not None:
                self._halted += [(now + fault.seconds, process) for process in chosen]
        self.came.append(Injected(fault, now))
        return True


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
