"""A blocking twin does what its async method does, in the caller's own thread."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest

import rollout_service.twins as twins
from rollout_service.client import RolloutClient


class Counter:
    async def aadd(self, number: int, *, times: int = 1) -> tuple[int, int]:
        """The product, and the thread that made it."""
        if number < 0:
            raise ValueError("negative")
        assert await _waited() == "come"
        return number * times, threading.get_ident()

    add = twins.blocking(aadd)

    def work(self, number: int) -> tuple[int, int]:
        """The same number, and the thread that saw it."""
        return number, threading.get_ident()

    awork = twins.in_thread(work)

    async def sleeps(self) -> None:
        await asyncio.sleep(0)


async def _waited() -> str:
    """Knows both ways to wait."""
    if not twins.blocks():
        await asyncio.sleep(0)
    return "come"


def test_both_twins_give_the_same_and_the_blocking_one_in_the_caller_s_thread():
    own = threading.get_ident()
    assert Counter().add(3, times=2) == (6, own)
    assert asyncio.run(Counter().aadd(3, times=2)) == (6, own)
    with pytest.raises(ValueError, match="negative"):
        Counter().add(-1)


def test_a_blocking_twin_works_where_a_loop_runs_and_the_loop_s_own_waits_go_on():
    async def use():
        return Counter().add(3), twins.blocks(), await Counter().aadd(4)

    (first, blocks, second) = asyncio.run(use())
    assert (first[0], blocks, second[0]) == (3, False, 4)


def test_work_that_needs_one_thread_is_awaited_from_another():
    number, thread = asyncio.run(Counter().awork(5))
    assert number == 5
    assert thread != threading.get_ident()


def test_what_only_a_loop_can_wait_for_is_an_error_and_no_endless_wait():
    with pytest.raises(RuntimeError, match="no blocking form"):
        twins.run(Counter().sleeps())
    assert not twins.blocks()


@pytest.mark.parametrize(
    "name",
    ["status", "weight_version", "replicas", "pause", "resume", "update_weights", "close", "collect", "evaluate"],
)
def test_the_client_s_twins_have_one_docstring_and_their_own_names(name):
    blocking, waiting = getattr(RolloutClient, name), getattr(RolloutClient, f"a{name}")
    assert (blocking.__name__, waiting.__name__) == (name, f"a{name}")
    assert blocking.__doc__
    assert waiting.__doc__
    assert inspect.iscoroutinefunction(waiting)
    assert not inspect.iscoroutinefunction(blocking)
    if name not in ("collect", "evaluate"):  # which show progress
        assert inspect.signature(blocking) == inspect.signature(waiting)
