"""The injector: each fault once, at its number of deliveries and after its delay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chaos.inject import Injector
from tests.chaos.schedule import Fault


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_fault_comes_once_at_its_number_of_deliveries_and_after_its_delay():
    faults = [Fault("user", 2, how="empty", requests=1), Fault("user", 2, delay=5.0, how="hang", requests=2)]
    seen: list[Fault] = []
    injector = Injector(faults, lambda target: [], seen.append)
    injector.step(1, now=0.0)
    assert seen == []
    injector.step(2, now=1.0)
    injector.step(9, now=5.9)
    assert seen == faults[:1]
    injector.step(9, now=6.0)
    injector.step(9, now=99.0)
    assert seen == faults
    assert [(injected.fault, injected.at) for injected in injector.came] == [(faults[0], 1.0), (faults[1], 6.0)]
    injector.finish()
    assert injector.missed == 0


def test_a_process_is_halted_and_goes_on_also_when_the_run_ends_before(victim):
    injector = Injector([Fault("actor", 0, how="STOP", seconds=3.0)], lambda target: [victim.pid], lambda fault: None)
    injector.step(0, now=10.0)
    injector.step(0, now=12.9)
    assert os.WIFSTOPPED(os.waitpid(victim.pid, os.WUNTRACED)[1])
    injector.finish()
    assert os.WIFCONTINUED(os.waitpid(victim.pid, os.WCONTINUED)[1])


def test_the_picked_process_is_killed_and_the_others_are_not(victim):
    other = os.getpid()
    injector = Injector([Fault("actor", 0, pick=5)], lambda target: [other, victim.pid], lambda fault: None)
    injector.step(0, now=0.0)
    assert victim.wait(120) == -9


def test_a_fault_waits_for_a_process_to_hit_but_not_for_ever(victim):
    found: list[int] = []
    injector = Injector([Fault("actor", 0), Fault("replica", 0)], lambda target: found * (target == "actor"), print)
    injector.step(0, now=0.0)
    found.append(victim.pid)
    injector.step(0, now=1.0)
    assert victim.wait(120) == -9
    for now in (2.0, 30.0, 31.0):
        injector.step(0, now)
    assert (len(injector.came), injector.missed) == (1, 1)
    injector.finish()
    assert injector.missed == 1, "it is counted once"
