"""Slots: how many episodes run at a time, and how they end early."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from typing import Any, ClassVar

import pytest

from rollout_service.errors import EpisodeEnd
from rollout_service.tau2.slots import Slots
from tests.support import episodes


class Runner:
    """Stands for an EpisodeRunner: an episode lasts until it is let go, cancelled or out of time."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.most = 0
        self.begun = 0
        self.let_go = threading.Event()
        self.from_when: dict[str, float] = {}
        """When each episode's time began to run, by `time.monotonic`."""
        self.ended_by: dict[str, str] = {}
        self.waited: dict[str, float] = {}

    def run(self, request: Any, clock: Any) -> str:
        name = request.trajectory_id
        self.running.add(name)
        self.begun += 1
        self.most = max(self.most, len(self.running))
        try:
            self.from_when[name] = clock._start
            self.waited[name] = request.waited_seconds
            while not self.let_go.wait(0.01):
                clock.remaining()
            self.ended_by[name] = "let go"
        except EpisodeEnd as end:
            self.ended_by[name] = end.reason
        finally:
            self.running.discard(name)
        return name


def request(number: int) -> Any:
    return episodes.request(episodes.task("mock"), sample=number)


async def until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in threads
            await asyncio.sleep(0.01)


def test_so_many_episodes_run_at_a_time_and_all_run():
    async def play() -> tuple[int, int]:
        runner, slots = Runner(), Slots(3, wall_seconds=60)
        tasks = [asyncio.ensure_future(slots.run(runner, request(number))) for number in range(8)]
        await until(lambda: len(runner.running) == 3)
        runner.let_go.set()
        return runner.most, len(set(await asyncio.gather(*tasks)))

    assert asyncio.run(play()) == (3, 8)


def test_an_episodes_time_does_not_run_while_it_waits_for_a_slot():
    async def play() -> None:
        runner, slots = Runner(), Slots(1, wall_seconds=60)
        tasks = [asyncio.ensure_future(slots.run(runner, request(number))) for number in range(2)]
        await until(lambda: runner.running)
        let_go = time.monotonic()
        runner.let_go.set()
        await asyncio.gather(*tasks)
        assert runner.from_when["t-0"] <= let_go <= runner.from_when["t-1"]

    asyncio.run(play())


def test_an_episode_ends_when_its_time_is_up():
    async def play() -> dict[str, str]:
        runner, slots = Runner(), Slots(1, wall_seconds=0.2)
        await slots.run(runner, request(0))
        return runner.ended_by

    assert asyncio.run(play()) == {"t-0": "wall_time"}


def test_cancelled_episodes_end_and_the_others_go_on():
    async def play() -> dict[str, str]:
        runner, slots = Runner(), Slots(2, wall_seconds=60)
        tasks = [asyncio.ensure_future(slots.run(runner, request(number))) for number in range(2)]
        await until(lambda: len(runner.running) == 2)
        slots.cancel(["t-1", "unknown"])
        await tasks[1]
        runner.let_go.set()
        await tasks[0]
        return runner.ended_by

    assert asyncio.run(play()) == {"t-1": "cancelled", "t-0": "let go"}


def test_an_update_ends_the_episodes_that_are_too_old_now_or_at_the_end_of_their_turn():
    """Episode 0 sampled with version 3 and episode 1 with 4; another collection's version is no matter."""

    class Sampling(Runner):
        def run(self, request: Any, clock: Any) -> str:
            if request.sample_index < 2:
                clock.sampled(3 + request.sample_index)
            self.clocks[request.trajectory_id] = clock
            return super().run(request, clock)

        clocks: ClassVar[dict[str, Any]] = {}

    async def play() -> dict[str, str]:
        runner, slots = Sampling(), Slots(4, wall_seconds=60)
        tasks = [asyncio.ensure_future(slots.run(runner, request(number))) for number in range(3)]
        await until(lambda: len(runner.running) == 3)
        collection = request(0).collection_id
        slots.cut({"other": 9})
        slots.cut({collection: 4})
        await tasks[0]
        tasks.append(asyncio.ensure_future(slots.run(runner, request(3))))
        await until(lambda: "t-3" in runner.running)
        for late in ("t-2", "t-3"):  # they sampled with old weights, in a turn that ended after the update
            with contextlib.suppress(EpisodeEnd):
                runner.clocks[late].sampled(3)
        await asyncio.gather(*tasks[2:])
        runner.let_go.set()
        await tasks[1]
        return runner.ended_by

    ended = asyncio.run(play())
    assert ended == {"t-0": "cancelled", "t-2": "cancelled", "t-3": "cancelled", "t-1": "let go"}


def test_an_episode_that_is_begun_again_before_it_has_ended_disturbs_neither_run():
    async def play() -> list[Any]:
        runner, slots = Runner(), Slots(2, wall_seconds=60)
        tasks = [asyncio.ensure_future(slots.run(runner, request(0))) for _ in range(2)]
        await until(lambda: runner.begun == 2)
        runner.let_go.set()
        ended = await asyncio.gather(*tasks)
        assert not slots.places()
        return ended

    assert asyncio.run(play()) == [request(0).trajectory_id] * 2


def test_an_episode_that_nobody_waits_for_any_more_ends():
    async def play() -> dict[str, str]:
        runner, slots = Runner(), Slots(1, wall_seconds=60)
        task = asyncio.ensure_future(slots.run(runner, request(0)))
        await until(lambda: runner.running)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await until(lambda: not runner.running)
        return runner.ended_by

    assert asyncio.run(play()) == {"t-0": "cancelled"}


def test_an_error_of_the_request_reaches_the_caller_and_frees_the_slot():
    class Refusing(Runner):
        def run(self, request: Any, clock: Any) -> str:
            raise KeyError(request.trajectory_id)

    async def play() -> None:
        slots = Slots(1, wall_seconds=60)
        for number in range(2):
            with pytest.raises(KeyError):
                await slots.run(Refusing(), request(number))

    asyncio.run(play())


def test_the_time_that_an_episode_waited_is_a_span_that_no_clock_on_the_wall_can_change(monkeypatch):
    """What the coordinator counted before, and the wait for a slot here."""

    async def play() -> dict[str, float]:
        runner, slots = Runner(), Slots(1, wall_seconds=60)
        asked = [dataclasses.replace(request(number), waited_seconds=100.0) for number in range(2)]
        tasks = [asyncio.ensure_future(slots.run(runner, each)) for each in asked]
        await until(lambda: runner.running)
        monkeypatch.setattr("time.time", lambda: 0.0)  # 1970
        await asyncio.sleep(0.3)
        runner.let_go.set()
        await asyncio.gather(*tasks)
        return runner.waited

    waited = asyncio.run(play())
    assert 100.0 <= waited["t-0"] <= waited["t-1"] - 0.1, "the other one waited for 0.3 s more"
    assert waited["t-1"] < 160


class Hanging(Runner):
    """An episode that looks at no deadline."""

    def run(self, request: Any, clock: Any) -> str:
        self.running.add(request.trajectory_id)
        self.let_go.wait()
        self.running.discard(request.trajectory_id)
        return "too late"


def test_an_episode_whose_thread_hangs_comes_back_as_a_fault_with_its_stack_and_its_slot_takes_no_other():
    async def play() -> None:
        runner, slots = Hanging(), Slots(1, wall_seconds=0.05, stuck_seconds=0.05)
        trajectory = await slots.run(runner, request(0))
        fault = trajectory.fault
        assert (fault.kind, fault.error, fault.retryable) == ("service", "StuckSlot", True)
        assert "self.let_go.wait()" in fault.traceback
        assert slots.stuck == 1
        assert slots.places() == {}
        following = asyncio.ensure_future(slots.run(runner, request(1)))
        await asyncio.sleep(0.05)
        assert runner.running == {"t-0"}, "its thread is not free"
        runner.let_go.set()
        assert await following == "too late"
        assert slots.stuck == 0

    asyncio.run(play())
