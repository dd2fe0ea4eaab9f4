"""Groups on their way to readers that lose connections, come back and are slow."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.errors import ServiceError
from rollout_service.gateway.delivery import CursorError, Delivery


class Source:
    """A collection of so many groups, 10, 20, 30, … It counts how often it is asked at a time."""

    def __init__(self, groups: int, error: Exception | None = None) -> None:
        self.left = [10 * number for number in range(1, groups + 1)]
        self.error = error
        self.taken = self.asking = 0
        self.released: list[int] = []

    def release(self, group: int) -> None:
        self.released.append(group)

    async def take(self) -> int | None:
        assert self.asking == 0, "asked for one group at a time"
        self.asking += 1
        await asyncio.sleep(0)
        self.asking -= 1
        if self.left:
            self.taken += 1
            return self.left.pop(0)
        if self.error is not None:
            raise self.error
        return None


def delivery_of(source: Source, most_held: int) -> Delivery[int]:
    return Delivery(source.take, source.release, most_held)


async def nothing_comes(wait) -> bool:
    for _ in range(10):
        await asyncio.sleep(0)
    return not wait.done()


@given(
    groups=st.integers(0, 8),
    most_held=st.integers(1, 4),
    steps=st.lists(st.sampled_from(["read", "lose", "cut", "acknowledge"]), max_size=60),
)
def test_whatever_is_cut_each_group_comes_once_and_in_order_and_no_more_are_held_than_allowed(groups, most_held, steps):
    async def run() -> None:
        source = Source(groups)
        delivery = Delivery(source.take, source.release, most_held)
        have = acknowledged = 0
        for step in [*steps, *["acknowledge", "read"] * (groups + 1)]:
            wait = asyncio.ensure_future(delivery.group(have + 1))
            if step == "cut":  # the reader goes before an answer came
                await asyncio.sleep(0)
                wait.cancel()
            elif await nothing_comes(wait):
                assert have - acknowledged == most_held, "only unacknowledged groups make a reader wait here"
                wait.cancel()
            elif (found := wait.result()) is not None:
                assert found == 10 * (have + 1)
                have += step == "read"  # else the answer was lost on its way
            else:
                assert have == groups
            if step == "acknowledge":
                delivery.acknowledge(have)
                acknowledged = have
            assert source.taken - acknowledged <= most_held
        assert have == groups
        delivery.acknowledge(have)
        assert delivery.ended
        assert source.released == [10 * number for number in range(1, groups + 1)]

    asyncio.run(run())


async def test_a_cursor_that_is_not_there_is_refused_in_words():
    delivery = delivery_of(Source(3), 8)
    with pytest.raises(CursorError, match=r"Group 1 was not given yet; the last one was 0\. Read on after 0"):
        await delivery.group(2)
    for number in (1, 2, 3):
        assert await delivery.group(number) == 10 * number
    delivery.acknowledge(2)
    delivery.acknowledge(1)
    with pytest.raises(CursorError, match=r"up to 2 were acknowledged.*none after 1\. Read on after 2"):
        await delivery.group(2)
    assert await delivery.group(3) == 30
    with pytest.raises(CursorError, match="Group 4 was not given"):
        delivery.acknowledge(4)
    assert not delivery.ended


async def test_what_ended_the_collection_comes_after_every_group_and_stays():
    delivery = delivery_of(Source(1, ServiceError("It was cancelled.")), 1)
    assert await delivery.group(1) == 10
    delivery.acknowledge(1)
    for _ in range(2):
        with pytest.raises(ServiceError, match="cancelled"):
            await delivery.group(2)


async def test_two_readers_of_one_collection_get_the_same_groups():
    delivery = delivery_of(Source(2), 2)
    assert await asyncio.gather(*[delivery.group(1) for _ in range(3)]) == [10, 10, 10]
    assert await asyncio.gather(*[delivery.group(2) for _ in range(3)]) == [20, 20, 20]


async def test_closing_ends_every_wait_and_holds_nothing():
    delivery = delivery_of(Source(3), 1)
    await delivery.group(1)
    wait = asyncio.ensure_future(delivery.group(2))
    assert await nothing_comes(wait)
    delivery.close(ServiceError("It was cancelled."))
    for asked in (wait, delivery.group(1)):
        with pytest.raises(ServiceError, match="cancelled"):
            await asked


async def test_a_group_that_is_let_go_before_those_before_it_makes_room_and_is_released_once():
    source = Source(3)
    delivery = delivery_of(source, 2)
    assert [await delivery.group(number) for number in (1, 2)] == [10, 20]
    third = asyncio.ensure_future(delivery.group(3))
    assert await nothing_comes(third), "two are held"
    delivery.release([2])
    assert (await third, delivery.was_released(2), delivery.was_released(1)) == (30, True, False)
    with pytest.raises(CursorError, match="Group 4 was not given yet"):
        delivery.release([4])
    delivery.acknowledge(3)
    assert source.released == [20, 10, 30]
