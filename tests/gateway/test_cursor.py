"""How a client reads groups from a gateway: what it acknowledges, and how long it remembers."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_service.errors import ServiceError
from rollout_service.gateway.link import Ask
from rollout_service.gateway.remote import RemoteCoordinator
from rollout_service.gateway.wire import End, Numbered, of_error
from tests.support.trajectories import make_trajectory


class Link:
    """Stands for a gateway that has some groups."""

    def __init__(self, end: End, count: int = 2) -> None:
        self.asked: list[Ask] = []
        ids = range(1, count + 1)
        self.groups = [Numbered(number, [make_trajectory(group_id=f"group {number}")]) for number in ids]
        self.end = end

    async def ask(self, ask: Ask, read: Any) -> Any:
        self.asked.append(ask)
        if ask.query is None:
            return None
        found = [group for group in self.groups if group.number == int(ask.query["after"]) + 1]
        return found, End("open") if found else self.end


@pytest.mark.parametrize("end", [End("ended"), End("failed", of_error(ServiceError("It broke.")))])
async def test_what_is_acknowledged_after_the_end_reaches_the_gateway(end):
    link = Link(end)
    coordinator = RemoteCoordinator(link)
    groups = [await coordinator._next_group("c") for _ in range(2)]
    assert [group.number for group in groups] == [0, 1]
    if end.state == "ended":
        assert await coordinator._next_group("c") is None
    else:
        with pytest.raises(ServiceError, match="It broke"):
            await coordinator._next_group("c")
    for number in (1, 0):
        await coordinator._acknowledge("c", [number])
    assert [ask.body for ask in link.asked if ask.method == "POST"] == [{"number": 0, "also": [2]}, {"number": 2}]
    assert not coordinator._cursors, "a long training run remembers no collection that is over"


async def test_a_reader_that_keeps_its_first_group_tells_of_each_later_one_once():
    link = Link(End("ended"), 20)
    coordinator = RemoteCoordinator(link)
    for number in range(20):
        await coordinator._next_group("c")
        if number:
            await coordinator._acknowledge("c", [number])
    assert [ask.body for ask in link.asked if ask.method == "POST"] == [
        {"number": 0, "also": [number]} for number in range(2, 21)
    ], "a gateway takes no more than 1,024 numbers in one request"


async def test_what_a_reader_acknowledged_with_its_last_call_needs_no_other():
    coordinator = RemoteCoordinator(Link(End("ended")))
    assert (await coordinator._next_group("c")).number == 0
    assert (await coordinator._next_group("c", [0])).number == 1
    assert await coordinator._next_group("c", [1]) is None
    assert not coordinator._cursors
