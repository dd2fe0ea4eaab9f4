"""What the service's own loggers write: rarely enough, without secrets, and only where it is wanted."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rollout_service.logs as logs
from rollout_service.background import BackgroundTasks
from rollout_service.errors import Fault, FaultKind
from rollout_service.redaction import REDACTED, remember

NAME = "rollout_service.some_module"


def record(message: str, *args: object, event: str | None = None, name: str = NAME) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, "", 0, message, args, None)
    if event is not None:
        made.event = event
    return made


class Clock:
    now = 0

    def __call__(self) -> float:
        return self.now


def left_out(made: logging.LogRecord) -> int:
    found = re.search(r"\[(\d+) similar lines? left out\]", made.getMessage())
    return int(found.group(1)) if found else 0


@settings(deadline=None)
@given(events=st.lists(st.tuples(st.integers(0, 15), st.sampled_from("ab")), max_size=40))
def test_a_kind_is_written_once_per_interval_and_every_record_is_written_or_counted(events):
    clock = Clock()
    limit = logs.RateLimit(10.0, clock)
    written: dict[str, list[float]] = {"a": [], "b": []}
    counted = {"a": 0, "b": 0}
    for gap, kind in [*events, (10, "a"), (0, "b")]:
        clock.now += gap
        made = record("episode %s", kind, event=kind)
        if limit.filter(made):
            written[kind].append(clock.now)
            counted[kind] += 1 + left_out(made)
    assert all(later - earlier >= 10 for times in written.values() for earlier, later in itertools.pairwise(times))
    assert counted == {kind: 1 + [each for _, each in events].count(kind) for kind in "ab"}


def test_the_kind_of_an_event_is_its_message_before_the_arguments_or_what_is_named():
    limit = logs.RateLimit(10.0, Clock())
    assert limit.filter(record("episode %s failed", 1))
    assert not limit.filter(record("episode %s failed", 2))
    assert limit.filter(record("episode %s failed", 3, name="rollout_service.other"))
    assert limit.filter(record("episode %s failed", 4, event="fault policy"))
    assert not limit.filter(record("another text", event="fault policy"))


def test_the_next_line_says_how_many_were_left_out():
    clock = Clock()
    limit = logs.RateLimit(10.0, clock)
    for number in range(3):
        limit.filter(record("episode %s failed", number))
    clock.now = 10.0
    last = record("episode %s failed", 3)
    assert limit.filter(last)
    assert last.getMessage() == "episode 3 failed [2 similar lines left out]"


def test_the_count_stands_before_a_stack():
    clock = Clock()
    limit = logs.RateLimit(10.0, clock)
    for _ in range(2):
        limit.filter(record("episode %s failed\n%s", 1, "Traceback"))
    clock.now = 10
    last = record("episode %s failed\n%s", 1, "Traceback")
    assert limit.filter(last)
    assert last.getMessage() == "episode 1 failed [1 similar line left out]\nTraceback"


def test_the_kinds_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(logs, "_MOST_KINDS", 5)
    limit = logs.RateLimit(10.0, Clock())
    for number in range(100):
        assert limit.filter(record("m", event=str(number)))
    assert len(limit._kinds) <= 5


def test_a_logger_of_ours_shows_no_secret_in_message_or_traceback(caplog):
    remember(key := "-".join(["horse", "battery"]))
    log = logs.logger(NAME)
    assert logs.logger(NAME) is log
    assert len(log.filters) == 2
    with caplog.at_level(logging.INFO, NAME):
        log.info("the key is %s", key)
        try:
            raise ValueError(key)
        except ValueError:
            log.exception("it failed")
    assert caplog.messages == [f"the key is {REDACTED}", "it failed"]
    assert key not in caplog.text
    assert f"ValueError: {REDACTED}" in caplog.text


def test_a_fault_is_logged_with_its_stack_once_per_kind(caplog):
    log = logs.logger(NAME)
    fault = Fault(FaultKind.POLICY, "ValueError", "no answer", True, "Traceback ...\nValueError: no answer")
    for number in range(3):
        logs.log_fault(log, f"c-{number}", fault, attempt=2)
    logs.log_fault(log, "c-3", Fault(FaultKind.SERVICE, "TooOld", "it is too old", False))
    assert caplog.messages == [
        "Episode c-0, attempt 2: fault of kind policy (another attempt may help): ValueError: no answer\n"
        "Traceback ...\nValueError: no answer",
        "Episode c-3, attempt 1: fault of kind service (final): TooOld: it is too old",
    ]
    assert {made.levelname for made in caplog.records} == {"WARNING"}


CONFIGURED = """
import logging
import rollout_service.logs as logs
{before}
logs.configure({level})
logs.configure({level})
logging.getLogger().addHandler(logging.StreamHandler())  # as SGLang does
for name in "rollout_service.x", "actors.x", "deploy.x", "somebody.else":
    logs.logger(name).info("%s speaks", name)
    logs.logger(name).debug("%s whispers", name)
"""


@pytest.mark.parametrize(
    ("before", "level", "expected"),
    [
        ("", "", ["rollout_service.x speaks", "actors.x speaks", "deploy.x speaks"]),
        ("", "'ERROR'", []),
        (
            "logging.basicConfig(level='DEBUG', handlers=[logging.NullHandler()])",
            "",
            ["rollout_service.x speaks", "actors.x speaks", "deploy.x speaks", "somebody.else speaks"],
        ),
    ],
)
def test_a_configured_process_writes_each_line_of_ours_once(before, level, expected):
    code = CONFIGURED.format(before=before, level=level)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line.rpartition(": ")[2] for line in done.stderr.splitlines()]
    assert [line for line in said if "whispers" not in line or "somebody" not in line] == expected
    assert done.stdout == ""


def test_importing_the_library_leaves_the_logging_of_a_process_as_it_is():
    code = (
        "import logging, rollout_service, rollout_service.client, rollout_service.logs\n"
        "assert not logging.getLogger().handlers\n"
        "assert logging.getLogger().level == logging.WARNING\n"
        "assert not logging.getLogger('rollout_service').handlers\n"
        "assert logging.getLogger('rollout_service').level == logging.NOTSET\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_background_task_that_fails_is_logged_with_its_stack(caplog):
    tasks = BackgroundTasks()

    async def work() -> None:
        raise ValueError("no such thing")

    task = tasks.start(work(), "looking for a thing")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "Background task failed: looking for a thing." in caplog.text
    assert "in work" in caplog.text
    assert "ValueError: no such thing" in caplog.text
    assert not tasks._tasks


async def test_a_background_task_that_ends_or_is_cancelled_is_not_an_error(caplog):
    tasks = BackgroundTasks()
    ended = tasks.start(asyncio.sleep(0, "done"), "sleeping")
    assert await ended == "done"
    cancelled = tasks.start(asyncio.sleep(60), "sleeping")
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await asyncio.sleep(0)
    assert caplog.messages == []


def test_a_record_that_would_not_be_written_need_not_be_made() -> None:
    clock = Clock()
    limit = logs.RateLimit(10.0, clock)
    assert limit.is_due("held back")
    assert limit.filter(record("Held back.", event="held back"))
    assert not limit.is_due("held back")
    assert limit.is_due("another kind")
    clock.now += 10.0
    assert limit.is_due("held back")
    last = record("Held back.", event="held back")
    assert limit.filter(last)
    assert last.getMessage() == "Held back. [1 similar line left out]"
