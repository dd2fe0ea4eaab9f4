"""The actor pool, with stand-ins for the actors: which start, which are replaced, and when it gives up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

import actors.environment as environment
import actors.pool as module
from actors.environment import Pulse
from actors.pool import ActorPool
from actors.watch import Watch
from rollout_service.errors import ConfigError, RolloutError, ServiceError, Tau2Error
from tests.support.episodes import settings

DATA = {"mock": "fingerprint"}

HANGS = {"": "never comes"}


def handle(setup: Callable[[dict[str, str]], Awaitable[dict[str, str]]]) -> SimpleNamespace:
    """The handle of an actor whose process runs."""

    async def beat() -> Pulse:
        return Pulse(0, "node")

    return SimpleNamespace(beat=SimpleNamespace(remote=beat), setup=SimpleNamespace(remote=setup))


class Pool(ActorPool):
    """A pool whose actors say, one after the other, what `setups` has; the last one is said by all further ones."""

    def __init__(self, *setups: dict[str, str] | Exception) -> None:
        super().__init__(None, self)
        self.setups = deque(setups)
        self.ready: list[str] = []
        self.left: list[str] = []
        self.ends: list[RolloutError] = []
        self.work = True
        self.asked = 0
        """Episodes that wait or run."""
        self.episodes: dict[str, int] = {}
        """Episodes that run on an actor."""

    def actor_joined(self, name: str) -> None:
        self.ready.append(name)

    def actor_left(self, name: str) -> None:
        self.left.append(name)

    def running_on(self, name: str) -> int:
        return self.episodes.get(name, 0)

    def demand(self) -> int:
        return self.asked

    def has_work(self) -> bool:
        return self.work

    def pool_gave_up(self, error: RolloutError) -> None:
        self.ends.append(error)

    def _create(self, name: str, config: Any) -> Any:
        async def setup(variables: dict[str, str]) -> dict[str, str]:
            said = self.setups[0] if len(self.setups) == 1 else self.setups.popleft()
            if isinstance(said, Exception):
                raise said
            if said == HANGS:
                await asyncio.Event().wait()
            return said

        return handle(setup)

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


async def test_the_pacer_is_told_of_an_actor_that_has_gone(monkeypatch):
    told = []

    async def forget(config, name):
        told.append(name)

    monkeypatch.setattr(module.pacer, "forget", forget)
    pool = Pool(DATA)
    await pool.begin(1)
    pool.replace("s-environment-0", "its node is gone")
    await settled()
    assert told == ["s-environment-0"]


async def test_a_start_that_fails_is_tried_again():
    pool = Pool(OSError("no memory"), DATA)
    await pool.begin(1)
    assert pool.ready == ["s-environment-1"]
    assert "no memory" in str(pool.start_error)


async def test_an_actor_that_hangs_during_its_start_is_replaced(killed, monkeypatch):
    monkeypatch.setattr(environment, "_SETUP_SECONDS", 0.01)
    pool = Pool(HANGS, DATA)
    await pool.begin(1)
    assert (pool.ready, len(killed)) == (["s-environment-1"], 1)
    assert "was not ready 0.01 s after its process had begun" in str(pool.start_error)


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

            return handle(setup)

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
    pool.actor_joined = lambda name: all_ready.set() if len(pool) == 3 else None
    await pool.start(settings(service__actors=3, service__name="s"), {})
    await asyncio.wait_for(all_ready.wait(), 60)


# Later starts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch) -> list[int]:
    """Pauses are over at once; notes the number of the failed start before each."""
    found: list[int] = []
    monkeypatch.setattr(module, "seconds_before_retry", lambda failed: found.append(failed) or 0.0)
    return found


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - what is waited for is no event
            await asyncio.sleep(0)


async def test_a_later_start_that_fails_is_tried_again_after_growing_pauses(pauses):
    pool = Pool(DATA, *[OSError("no memory")] * 9, DATA)
    await pool.begin(1)
    pool.replace("s-environment-0", "it died")
    await until(lambda: len(pool) == 1)
    assert pauses == list(range(1, 10))
    assert pool.ends == []


async def test_a_start_is_not_tried_again_without_work_but_with_the_next_collection(pauses):
    pool = Pool(DATA, OSError("no memory"), DATA)
    await pool.begin(1)
    pool.work = False
    pool.replace("s-environment-0", "it died")
    await until(lambda: pauses and pool._next_try is None)
    assert len(pool) == pool._starting == 0
    pool.fill_up()
    await until(lambda: len(pool) == 1)


async def test_the_pool_gives_up_when_no_actor_is_left_and_none_starts_for_too_long(pauses):
    pool = Pool(DATA, OSError("no memory"))
    await pool.start(settings(service__actors=1, service__name="s", service__give_up_seconds=0.01), {})
    pool.replace("s-environment-0", "it died")
    await until(lambda: pool.ends)
    assert "no memory" in str(pool.ends[0])


async def test_the_pool_does_not_give_up_while_an_actor_is_left(pauses):
    pool = Pool(DATA, DATA, OSError("no memory"))
    await pool.start(settings(service__actors=2, service__name="s", service__give_up_seconds=0.0001), {})
    pool.complete()
    await until(lambda: len(pool) == 2)
    pool.replace("s-environment-0", "it died")
    await until(lambda: len(pauses) > 20)
    assert pool.ends == []
    pool.work = False


# Actors that have to go -----------------------------------------------------------------------------------------------


async def test_a_retired_actor_goes_when_its_episodes_have_ended_and_another_one_is_started(killed):
    pool = Pool(DATA)
    await pool.begin(1)
    pool.episodes["s-environment-0"] = 2
    pool.retire("s-environment-0", "1 of its slots hang")
    pool.retire("s-environment-0", "1 of its slots hang")
    await settled()
    assert pool.left == ["s-environment-0"]
    assert pool.ready[1:] == ["s-environment-1"]
    pool.end_retired()
    assert not killed, "its episodes go on"
    del pool.episodes["s-environment-0"]
    pool.end_retired()
    assert len(killed) == 1
    assert list(pool.actors()) == ["s-environment-1"]
    assert pool.left == ["s-environment-0"]
    assert pool.lost == 0


async def test_actors_are_added_for_the_episodes_and_removed_when_fewer_are_enough(killed):
    pool = Pool(DATA)
    bounds = {"service__autoscaling": {"min_actors": 1, "max_actors": 3, "idle_seconds": 10.0}}
    await pool.start(settings(service__name="s", service__slots=4, **bounds), {})
    pool.complete()
    await settled()
    assert len(pool) == 1
    pool.asked = 100
    pool.resize(0.0, free_cpus=8.0)
    await settled()
    assert len(pool) == 3
    pool.asked, pool.episodes = 2, {"s-environment-0": 1, "s-environment-2": 1}
    for now in (1.0, 5.0, 11.0):
        assert pool.left == []
        pool.resize(now, free_cpus=5.0)
    await settled()
    assert pool.left == ["s-environment-1", "s-environment-0"], "the least loaded ones"
    pool.end_retired()
    assert list(pool.actors()) == ["s-environment-0", "s-environment-2"], "the first one ends its episode"
    pool.episodes = {}
    pool.end_retired()
    assert (list(pool.actors()), len(killed), pool.lost) == (["s-environment-2"], 2, 0)


@pytest.mark.parametrize("error", [ActorDiedError(), KeyError("s-environment-0")])
async def test_an_actor_that_died_takes_its_episodes_with_it(error):
    pool = Pool(DATA)
    await pool.begin(1)
    assert not pool.lose("s-environment-0", error)
    assert pool.lost == 1


async def test_the_episodes_of_an_actor_whose_node_was_taken_away_are_handed_back():
    pool = Pool(DATA)
    await pool.begin(1)
    death = ActorDiedError()
    death._preempted = True
    assert pool.lose("s-environment-0", death)
    assert pool.lose("s-environment-0", ActorDiedError()), "the next one of its episodes"
    assert pool.lost == 0
    assert pool.left == ["s-environment-0"]


# The watch ------------------------------------------------------------------------------------------------------------


class Watched(Pool):
    """A pool with actors that give a sign of life as told."""

    def __init__(self) -> None:
        super().__init__(DATA)
        self.pulses: dict[str, Pulse | None] = {}
        """None: the actor hangs."""

    def _create(self, name: str, config: Any) -> Any:
        async def beat() -> Pulse:
            if (pulse := self.pulses.get(name, Pulse(0, "node"))) is None:
                await asyncio.Event().wait()
            return pulse

        handle = super()._create(name, config)
        handle.beat = SimpleNamespace(remote=beat)
        return handle


@pytest.fixture
async def watched() -> tuple[Watched, Callable[..., Awaitable[None]]]:
    """A pool of two actors, and what looks after them: at the time, and with the nodes that are drained."""
    pool = Watched()
    await pool.begin(2)
    await until(lambda: len(pool) == 2)
    watch = Watch(pool, settings(service__silence_seconds=10.0).service)

    async def look(now: float, leaving: dict[str, float] | None = None) -> None:
        watch.look(now, leaving or {})
        for _ in range(10):
            await asyncio.sleep(0)

    return pool, look


async def test_an_actor_that_gives_no_sign_of_life_is_replaced(watched):
    pool, look = watched
    pool.pulses["s-environment-1"] = None
    for second in range(11):
        assert (pool.lost, pool.left) == (0, [])
        await look(second)
    assert (pool.lost, pool.left) == (1, ["s-environment-1"])


async def test_nobody_is_replaced_because_the_watch_itself_was_stopped(watched):
    pool, look = watched
    pool.pulses["s-environment-1"] = None
    for second in (0, 1, 1000, 2000):
        await look(second)
    assert pool.lost == 0


async def test_an_actor_with_a_slot_that_hangs_goes_when_its_other_episodes_have_ended(watched, killed):
    pool, look = watched
    pool.pulses["s-environment-1"] = Pulse(1, "node")
    pool.episodes["s-environment-1"] = 3
    await look(0)
    await look(1)
    assert pool.left == ["s-environment-1"]
    assert not killed
    pool.episodes.clear()
    await look(2)
    assert len(killed) == 1
    assert "s-environment-1" not in pool.actors()


async def test_an_actor_whose_node_is_drained_ends_its_episodes_and_hands_back_the_others_before_the_node_goes(watched):
    pool, look = watched
    pool.pulses["s-environment-1"] = Pulse(0, "another")
    pool.episodes = {"s-environment-0": 2, "s-environment-1": 2}
    await look(0)
    await look(1, {"another": 60.0})
    assert pool.left == ["s-environment-1"]
    assert "s-environment-1" in pool.actors()
    await look(2, {"another": 5.0})
    assert "s-environment-1" not in pool.actors()
    assert "s-environment-0" in pool.actors()
    assert pool.lose("s-environment-1", ActorDiedError())
    assert pool.lost == 0


async def test_actors_of_a_coordinator_that_died_are_taken_over_and_those_that_cannot_go_on_are_ended(
    killed, monkeypatch
):
    answers = {3: DATA, 4: None, 7: ActorDiedError(), 9: {"mock": "other data"}}

    def handle(answer: Any) -> Any:
        async def adopt(seconds: float) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(adopt=SimpleNamespace(remote=adopt))

    handles = {f"s-environment-{number}": handle(answer) for number, answer in answers.items()}
    names = ["s-coordinator", "s-fleet", "s-environment-8", *handles]  # the eighth is gone when it is looked for
    monkeypatch.setattr(module.services, "find_actors", lambda name, namespace: names)
    monkeypatch.setattr(module.cluster, "find", lambda name, namespace: handles.get(name))
    pool = Pool(DATA)
    await pool.adopt(settings(service__name="s"))
    assert pool.ready == ["s-environment-3"]
    assert sorted(map(id, killed)) == sorted(id(handles[f"s-environment-{number}"]) for number in (4, 7, 9))
    await pool.begin(2)
    await settled()
    assert pool.ready == ["s-environment-3", "s-environment-10"], "a new one has a name of its own"
