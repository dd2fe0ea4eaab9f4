"""The actor pool, with stand-ins for the actors: which start, which are replaced, and when it gives up."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

import actors.pool as module
from actors.pool import ActorPool
from rollout_service.errors import ConfigError, RolloutError, ServiceError, Tau2Error
from tests.support.episodes import settings

DATA = {"mock": "fingerprint"}


class Pool(ActorPool):
    """A pool whose actors say, one after the other, what `setups` has; the last one is said by all further ones."""

    def __init__(self, *setups: dict[str, str] | Exception) -> None:
        super().__init__(None, lambda name: self.ready.append(name), lambda error: self.ends.append(error))
        self.setups = deque(setups)
        self.ready: list[str] = []
        self.ends: list[RolloutError] = []

    def _create(self, name: str, config: Any) -> Any:
        async def setup(variables: dict[str, str]) -> dict[str, str]:
            said = self.setups[0] if len(self.setups) == 1 else self.setups.popleft()
            if isinstance(said, Exception):
                raise said
            return said

        return SimpleNamespace(setup=SimpleNamespace(remote=setup))

    async def begin(self, actors: int) -> None:
        await self.start(settings(service__actors=actors, service__name="s"), {})
        self.complete()


async def settled() -> None:
    """Returns when no start is under way."""
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(tasks)


@pytest.fixture(autouse=True)
def killed(monkeypatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(module.ray, "kill", found.append)
    return found


async def test_a_lost_actor_is_killed_and_replaced_once_however_many_of_its_episodes_say_so(killed):
    pool = Pool(DATA)
    await pool.begin(2)
    await settled()
    for _ in range(3):
        pool.replace("s-environment-0", "its node is gone")
    await settled()
    assert pool.ready == ["s-environment-0", "s-environment-1", "s-environment-2"]
    assert (len(pool), pool.lost, len(killed)) == (2, 1, 1)


async def test_a_start_that_fails_is_tried_again():
    pool = Pool(OSError("no memory"), DATA)
    await pool.begin(1)
    assert pool.ready == ["s-environment-1"]
    assert "no memory" in str(pool.start_error)


async def test_the_pool_gives_up_with_the_last_reason_when_start_after_start_fails():
    pool = Pool(OSError("no memory"))
    with pytest.raises(ServiceError, match="No environment actor comes up; the last one failed with: no memory"):
        await pool.begin(1)
    assert [str(error) for error in pool.ends] == [str(pool.start_error)]


async def test_settings_that_no_actor_can_use_are_said_at_once():
    pool = Pool(ConfigError("the key is not set."))
    with pytest.raises(ConfigError, match="the key is not set"):
        await pool.begin(1)


async def test_an_actor_that_read_other_data_than_the_first_one_is_not_used():
    pool = Pool(DATA, {"mock": "another"}, DATA)
    await pool.begin(2)
    await settled()
    assert isinstance(pool.start_error, Tau2Error)
    assert pool.ready == ["s-environment-0"]


async def test_the_first_actor_starts_alone_and_the_others_when_the_replicas_can_sample():
    first_is_ready = asyncio.Event()
    created: list[str] = []
    begun = asyncio.Event()

    class Slow(Pool):
        def _create(self, name: str, config: Any) -> Any:
            created.append(name)
            begun.set()

            async def setup(variables: dict[str, str]) -> dict[str, str]:
                await first_is_ready.wait()
                return DATA

            return SimpleNamespace(setup=SimpleNamespace(remote=setup))

    pool = Slow(DATA)
    start = asyncio.ensure_future(pool.start(settings(service__actors=3, service__name="s"), {}))
    await begun.wait()
    first_is_ready.set()
    await start
    assert created == ["s-environment-0"]
    pool.complete()
    await settled()
    assert len(created) == len(pool) == 3


async def test_replicas_that_take_long_do_not_keep_the_other_actors_from_starting(monkeypatch):
    monkeypatch.setattr(module, "_ALONE_SECONDS", 0)
    all_ready = asyncio.Event()
    pool = Pool(DATA)
    pool._joined = lambda name: all_ready.set() if len(pool) == 3 else None
    await pool.start(settings(service__actors=3, service__name="s"), {})
    await asyncio.wait_for(all_ready.wait(), 60)
