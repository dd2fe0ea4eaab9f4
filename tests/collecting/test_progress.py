"""What a person sees of a collection while it runs."""

from __future__ import annotations

import concurrent.futures
import io
from types import SimpleNamespace
from typing import Any

import pytest

import rollout_service.collecting.stream as module
from rollout_service.cli.playing import exit_code
from rollout_service.cluster import Call
from rollout_service.collecting.progress import CollectionProgress
from rollout_service.collecting.request import Accepted
from rollout_service.collecting.stream import GroupStream
from rollout_service.errors import Fault, FaultKind
from rollout_service.record.trajectory import Outcome
from tests.support.trajectories import make_trajectory

FAULT = Fault(FaultKind.USER_SIMULATOR, "Timeout", "no answer", retryable=True)


def some() -> list[Any]:
    good, bad = make_trajectory(reward=1.0), make_trajectory(reward=0.5)
    return [good, bad, make_trajectory(reward=None, fault=FAULT, outcome=Outcome.ABORTED)]


def test_a_log_line_counts_what_is_no_data_apart(capsys):
    with CollectionProgress(6) as progress:
        progress.add(some())
        progress.withhold(some(), "too few")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("6/6 episodes, ")
    assert line.endswith("reward 0.750, faults: user_simulator 1, 1 without a reward, 3 withheld (min_group_size)")
    assert (progress.summary.episodes, exit_code(progress.summary, "", progress.withheld)) == (3, 1)


def test_a_log_line_counts_the_groups_that_a_filter_dropped(capsys):
    with CollectionProgress(6) as progress:
        progress.add(some(), dropped=1)
        progress.add(some(), dropped=4)
    assert capsys.readouterr().err.strip().endswith("faults: user_simulator 2, 4 groups dropped, 2 without a reward")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_line_has_the_reward_so_far_and_the_faults(capsys):
    with CollectionProgress(3) as progress:
        assert progress.waits is None, "a log gets such lines from the stream"
        progress.add(some())
    line = capsys.readouterr().err.strip()
    assert line.startswith("3/3 episodes, ")
    assert line.endswith("/min, reward 0.750, faults: user_simulator 1, 1 without a reward")


def test_a_terminal_shows_what_is_waited_for_until_the_next_group_comes(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    with CollectionProgress(6) as progress:
        progress.waits("2 episodes running, the oldest for 300 s")
        progress._bar.live.refresh()
        before = screen.getvalue()
        progress.add(some())
    assert "waits for 2 episodes running, the oldest for 300 s" in before
    last = screen.getvalue()[len(before) :]
    assert "3/6" in last
    assert "reward 0.750" in last
    assert "waits for" not in last.rpartition("3/6")[2]


def test_a_narrow_terminal_still_has_the_count_and_all_of_the_note(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    with CollectionProgress(600) as progress:
        for _ in range(30):
            progress.add(some())
    words = " ".join(screen.getvalue().split())
    assert "90/600" in words
    assert "reward 0.750, faults: user_simulator 30, 30 without a reward" in words


@pytest.mark.parametrize("blocks", [False, True])
async def test_a_stream_tells_what_its_next_group_waits_for(blocks, monkeypatch):
    monkeypatch.setattr(module, "_TELL_SECONDS", 0.01)
    group: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def done(value: Any) -> Call[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(value)
        return Call(future)

    told = []

    def tell(reason: str) -> None:
        told.append(reason)
        if not group.done():
            group.set_result(None)

    coordinator = SimpleNamespace(
        next_group=SimpleNamespace(remote=lambda *_: Call(group)),
        status=SimpleNamespace(remote=lambda: done({"collections": {}})),
    )
    stream = GroupStream(coordinator, lambda: done(Accepted("c", 1, 0)))
    stream.tell = tell
    assert (list(stream) if blocks else [each async for each in stream]) == []
    assert told[0].startswith("the service's answer: it does not know the collection")
