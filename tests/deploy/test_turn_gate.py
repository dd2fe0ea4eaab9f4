"""The turn gate: no turn enters while it is closed, every turn may leave, and nobody who waits misses a change."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.turn_gate import TurnGate


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


class Visitor:
    """One turn in a task of its own: waits outside, is inside until told to leave, is out."""

    def __init__(self, turn_gate: TurnGate) -> None:
        self.where = "outside"
        self._turn_gate = turn_gate
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        try:
            async with self._turn_gate.turn():
                assert self._turn_gate.is_open, "entered while it was closed"
                self.where = "inside"
                await self._leave.wait()
        finally:
            self.where = "out"

    def leave(self) -> None:
        self._leave.set()


def waiting(wait: Callable[[], Awaitable[None]], holds: Callable[[], bool]) -> asyncio.Task[None]:
    """A task that waits, and sees when it returns that what it waited for is so."""

    async def waits() -> None:
        await wait()
        assert holds()

    return asyncio.create_task(waits())


def at(items: list, index: int) -> list:
    """One of the items, or none if there is none."""
    return [items[index % len(items)]] if items else []


actions = st.tuples(
    st.sampled_from(
        ["enter", "enter", "leave", "leave", "cancel", "close", "open", "empty", "reached", "version", "give up"]
    ),
    st.integers(0, 9),
    st.booleans(),
)


@given(events=st.lists(actions, max_size=40))
@settings(max_examples=150, deadline=None)
def test_whoever_comes_leaves_waits_or_is_cancelled_the_count_is_right_and_no_wake_up_is_lost(events):
    asyncio.run(_played(events))


async def _played(events: list[tuple[str, int, bool]]) -> None:
    turn_gate, version = TurnGate(0), 0
    visitors: list[Visitor] = []
    waiters: dict[asyncio.Task[None], Callable[[], bool]] = {}

    def is_empty() -> bool:
        return not turn_gate.inside

    def has(wanted: int) -> bool:
        return version >= wanted

    for what, which, then_settle in events:
        living = [visitor for visitor in visitors if not visitor.task.done()]
        if what == "enter":
            visitors.append(Visitor(turn_gate))
        elif what == "leave":
            for visitor in at([visitor for visitor in living if visitor.where == "inside"], which):
                visitor.leave()
        elif what == "cancel":
            for visitor in at(living, which):
                visitor.task.cancel()
        elif what == "close":
            turn_gate.close()
        elif what == "open":
            turn_gate.open()
        elif what == "empty":
            waiters[waiting(turn_gate.empty, is_empty)] = is_empty
        elif what == "reached":
            wanted = version + which % 3
            has_it = functools.partial(has, wanted)
            waiters[waiting(functools.partial(turn_gate.reached, wanted), has_it)] = has_it
        elif what == "version":
            version += which % 3
            turn_gate.set_version(version)
        else:
            for task in at([task for task in waiters if not task.done()], which):
                task.cancel()
        if then_settle:
            await settle()
            places = [visitor.where for visitor in visitors if not visitor.task.done()]
            assert turn_gate.inside == places.count("inside")
            assert not turn_gate.is_open or "outside" not in places, "it is open and somebody still waits"
            assert not [task for task, holds in waiters.items() if holds() and not task.done()], "a wake-up was lost"
    turn_gate.open()
    version += 3
    turn_gate.set_version(version)
    await settle()
    for visitor in visitors:
        visitor.leave()
    await settle()
    assert turn_gate.inside == 0
    for task in [visitor.task for visitor in visitors] + list(waiters):
        assert task.done(), "somebody waits for ever"
        assert task.cancelled() or task.exception() is None


async def test_it_is_open_at_first_and_many_are_inside_at_once():
    turn_gate = TurnGate(0)
    visitors = [Visitor(turn_gate) for _ in range(5)]
    await settle()
    assert [visitor.where for visitor in visitors] == ["inside"] * 5
    assert turn_gate.inside == 5


async def test_while_it_is_closed_nobody_enters_and_those_inside_may_leave():
    turn_gate = TurnGate(0)
    inside = Visitor(turn_gate)
    await settle()
    turn_gate.close()
    late = Visitor(turn_gate)
    await settle()
    assert (inside.where, late.where, turn_gate.inside) == ("inside", "outside", 1)
    inside.leave()
    await settle()
    assert (inside.where, late.where, turn_gate.inside) == ("out", "outside", 0)
    turn_gate.open()
    await settle()
    assert (late.where, turn_gate.inside) == ("inside", 1)


async def waiting_outside(count: int) -> tuple[TurnGate, list[Visitor]]:
    """A closed gate, and visitors that wait for it to open."""
    turn_gate = TurnGate(0)
    turn_gate.close()
    visitors = [Visitor(turn_gate) for _ in range(count)]
    await settle()
    return turn_gate, visitors


async def test_empty_returns_when_the_last_is_out_and_not_before():
    turn_gate = TurnGate(0)
    first, last = Visitor(turn_gate), Visitor(turn_gate)
    await settle()
    turn_gate.close()
    empty = asyncio.create_task(turn_gate.empty())
    first.leave()
    await settle()
    assert not empty.done()
    last.leave()
    await settle()
    assert empty.done()


async def test_empty_returns_at_once_when_nobody_is_inside():
    await asyncio.wait_for(TurnGate(0).empty(), 60)


async def test_a_door_that_opens_and_closes_at_once_lets_nobody_in():
    turn_gate, (visitor,) = await waiting_outside(1)
    turn_gate.open()
    turn_gate.close()
    await settle()
    assert visitor.where == "outside"
    turn_gate.open()
    await settle()
    assert visitor.where == "inside"


async def test_a_turn_that_is_cancelled_outside_was_never_counted():
    turn_gate, (gone, patient) = await waiting_outside(2)
    gone.task.cancel()
    await settle()
    assert (gone.task.cancelled(), turn_gate.inside) == (True, 0)
    turn_gate.open()
    await settle()
    assert (patient.where, turn_gate.inside) == ("inside", 1)


async def test_a_turn_that_is_cancelled_just_when_it_is_let_in_is_not_counted():
    turn_gate, (visitor,) = await waiting_outside(1)
    turn_gate.open()
    visitor.task.cancel()
    await settle()
    assert (visitor.task.cancelled(), turn_gate.inside) == (True, 0)


async def test_a_turn_that_is_cancelled_inside_is_out_and_empty_hears_of_it():
    turn_gate = TurnGate(0)
    visitor = Visitor(turn_gate)
    await settle()
    empty = asyncio.create_task(turn_gate.empty())
    await settle()
    visitor.task.cancel()
    await settle()
    assert (turn_gate.inside, empty.done()) == (0, True)


async def test_a_turn_that_fails_is_out():
    turn_gate = TurnGate(0)
    with pytest.raises(ValueError, match="bad prompt"):
        async with turn_gate.turn():
            raise ValueError("bad prompt")
    assert turn_gate.inside == 0
    await asyncio.wait_for(turn_gate.empty(), 60)


async def test_empty_can_be_asked_again_after_it_took_too_long():
    turn_gate = TurnGate(0)
    visitor = Visitor(turn_gate)
    await settle()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(turn_gate.empty(), 0.001)
    empty = asyncio.create_task(turn_gate.empty())
    visitor.leave()
    await settle()
    assert empty.done()


async def test_a_version_is_reached_when_the_replica_has_it_or_a_newer_one_open_or_not():
    turn_gate = TurnGate(3)
    await asyncio.wait_for(turn_gate.reached(3), 60)
    turn_gate.close()
    fourth, sixth = asyncio.create_task(turn_gate.reached(4)), asyncio.create_task(turn_gate.reached(6))
    await settle()
    assert not fourth.done()
    turn_gate.set_version(5)
    await settle()
    assert (fourth.done(), sixth.done()) == (True, False)
    turn_gate.set_version(6)
    await settle()
    assert sixth.done()
