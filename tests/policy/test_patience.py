"""A lost turn is asked for again, for no longer than was said, and of three engines at most; nothing else is."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.errors import EpisodeFault
from rollout_service.policy import patience
from rollout_service.policy.base import Generation
from rollout_service.policy.patience import DeadEngineError, LostTurnError, Patience

TURN = Generation(np.asarray([1], np.int32), np.asarray([-1], np.float32), np.asarray([0], np.int32), "stop")


class Flaky:
    """Loses the first `failures` turns, each with a cause of its own."""

    def __init__(self, failures: int | float) -> None:
        self.failures = failures
        self.asked = 0

    async def __call__(self) -> Generation:
        self.asked += 1
        if self.asked > self.failures:
            return TURN
        raise LostTurnError from ConnectionError(f"loss {self.asked}")


@pytest.fixture
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_WAIT_SECONDS", 0.0005)
    monkeypatch.setattr(patience, "_LONGEST_WAIT_SECONDS", 0.002)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("failures", [0, 1, 4])
async def test_a_lost_turn_is_asked_for_again_until_it_comes_and_the_log_says_why(failures, caplog):
    caplog.set_level("INFO", "rollout_service")
    ask = Flaky(failures)
    assert await Patience(60).retry_lost_turn(ask) is TURN
    assert ask.asked == failures + 1
    first = "A turn was lost and is sent again (attempt 2, 60 s left for it): loss 1"
    assert caplog.messages == ([first] if failures else []), "the others are left out for 10 s"


@pytest.mark.usefixtures("short_waits")
async def test_it_gives_up_with_the_last_cause_when_the_time_is_over():
    ask, start = Flaky(float("inf")), time.monotonic()
    with pytest.raises(ConnectionError) as raised:
        await Patience(0.2).retry_lost_turn(ask)
    assert ask.asked > 1
    assert str(raised.value) == f"loss {ask.asked}"
    assert time.monotonic() - start > 0.1


async def test_it_asks_once_when_no_time_is_given():
    ask = Flaky(float("inf"))
    with pytest.raises(ConnectionError, match="loss 1"):
        await Patience(0).retry_lost_turn(ask)
    assert ask.asked == 1


async def test_a_loss_without_a_cause_is_raised_itself():
    async def ask():
        raise LostTurnError("for no reason")

    with pytest.raises(LostTurnError, match="for no reason"):
        await Patience(0).retry_lost_turn(ask)


@pytest.mark.parametrize("error", [ValueError("bad prompt"), ConnectionError("not said to be lost"), KeyError("x")])
async def test_any_other_error_passes_at_once(error):
    asked = []

    async def ask():
        asked.append(1)
        raise error

    with pytest.raises(type(error)) as raised:
        await Patience(60).retry_lost_turn(ask)
    assert (raised.value, len(asked)) == (error, 1)


@pytest.mark.usefixtures("short_waits")
async def test_another_error_after_lost_turns_passes_too():
    ask = Flaky(2)

    async def refuses_at_last():
        await ask()
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        await Patience(60).retry_lost_turn(refuses_at_last)
    assert ask.asked == 3


async def test_cancelling_it_while_it_asks_cancels_what_is_asked():
    cancelled = []

    async def ask():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    task = asyncio.create_task(Patience(60).retry_lost_turn(ask))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == [1]


async def test_cancelling_it_while_it_waits_asks_no_more():
    ask = Flaky(float("inf"))
    task = asyncio.create_task(Patience(60).retry_lost_turn(ask))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ask.asked == 1


async def gathered(turn):
    """The turn, or the error that it ended with."""
    return await asyncio.gather(turn, return_exceptions=True)


@given(
    seconds=st.floats(0, 30), lasting=st.lists(st.floats(0, 8), min_size=1, max_size=60), failures=st.integers(0, 60)
)
@settings(deadline=None)
def test_on_any_clock_it_waits_longer_each_time_and_is_over_in_time(seconds, lasting, failures):
    """`lasting`: seconds that each ask takes, over and over."""
    clock, asks, losses, waits = SimpleNamespace(now=1000.0), [], [], []

    async def ask():
        asks.append(clock.now)
        clock.now += lasting[len(asks) % len(lasting)]
        if len(asks) > failures:
            return TURN
        losses.append(clock.now)
        raise LostTurnError from ConnectionError(f"loss {len(asks)}")

    async def sleep(wait):
        waits.append(wait)
        clock.now += wait

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "asyncio", SimpleNamespace(sleep=sleep, Lock=asyncio.Lock))
        patch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: clock.now))
        (outcome,) = asyncio.run(gathered(Patience(seconds).retry_lost_turn(ask)))
    upper = [min(5.0, 0.1 * 2**i) for i in range(len(asks))]
    for wait, longest in zip(waits, upper, strict=False):
        assert longest / 2 <= wait <= longest
    assert len(waits) == len(asks) - 1
    assert all(start <= losses[0] + seconds for start in asks[1:]), "it asked again after the time was over"
    if len(asks) > failures:
        assert outcome is TURN
    else:
        assert str(outcome) == f"loss {len(asks)}"
        assert losses[-1] + upper[len(asks) - 1] > losses[0] + seconds, "there was time to ask once more"


class Fleet:
    """Replicas that die of one turn, the culprit, with all that they have. There is always another one."""

    def __init__(self, replicas: int) -> None:
        self.generation = [0] * replicas
        self.deaths: list[asyncio.Event] = [asyncio.Event() for _ in range(replicas)]
        self.answered: list[int] = []

    async def ask(self, turn: int) -> Generation:
        place = turn % len(self.deaths)
        death, name = self.deaths[place], f"{place}-{self.generation[place]}"
        await asyncio.sleep(0)
        if turn == 0:
            self.deaths[place] = asyncio.Event()
            self.generation[place] += 1
            death.set()
        try:
            await asyncio.wait_for(death.wait(), 0.005)
        except TimeoutError:
            self.answered.append(turn)
            return TURN
        raise DeadEngineError(name) from ConnectionError(f"replica {name} is gone")


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_turn_that_ends_every_engine_is_given_up_and_all_others_come(replicas):
    fleet, caller = Fleet(replicas), Patience(60)
    turns = [caller.retry_lost_turn(lambda turn=turn: fleet.ask(turn)) for turn in range(20)]
    culprit, *others = await asyncio.gather(*turns, return_exceptions=True)
    assert isinstance(culprit, EpisodeFault)
    assert (culprit.fault.kind, culprit.fault.retryable, culprit.fault.error) == ("policy", False, "ConnectionError")
    assert "3 engines died while they had this turn" in culprit.fault.message
    assert others == [TURN] * 19
    assert sum(fleet.generation) == 3


@pytest.mark.usefixtures("short_waits")
async def test_an_engine_that_ended_once_is_counted_once_however_often_it_is_heard_of():
    asked = 0

    async def ask() -> Generation:
        nonlocal asked
        asked += 1
        if asked > 10:
            return TURN
        raise DeadEngineError("the same") from ConnectionError("gone")

    assert await Patience(60).retry_lost_turn(ask) is TURN


@given(losses=st.lists(st.sampled_from([None, "a", "b", "c", "d"]), max_size=12))
@settings(deadline=None)
def test_a_turn_is_given_up_at_the_third_engine_and_never_before(losses):
    asked = []

    async def ask() -> Generation:
        asked.append(1)
        if len(asked) > len(losses):
            return TURN
        engine = losses[len(asked) - 1]
        raise (DeadEngineError(engine) if engine else LostTurnError()) from ConnectionError("lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "_FIRST_WAIT_SECONDS", 1e-6)
        patch.setattr(patience, "_LONGEST_WAIT_SECONDS", 1e-6)
        (outcome,) = asyncio.run(gathered(Patience(60).retry_lost_turn(ask)))
    ends = [i for i in range(len(losses)) if len({engine for engine in losses[: i + 1] if engine}) == 3]
    assert isinstance(outcome, EpisodeFault) if ends else outcome is TURN
    assert len(asked) == (ends[0] if ends else len(losses)) + 1
