"""ActorSlots: the slots of a pool's actors, as the scheduler gets to know of them.

Invariant: the scheduler uses exactly the actors that joined the pool and did not leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from actors.running import RunningCollection
from rollout_service.collecting.scheduler import Scheduler
from rollout_service.errors import RolloutError


class ActorSlots:
    """The `PoolUser` of a coordinator."""

    def __init__(
        self,
        slots: int,
        scheduler: Scheduler,
        collections: Mapping[str, RunningCollection],
        pump: Callable[[], None],
        end: Callable[[RunningCollection, RolloutError], None],
    ) -> None:
        """
        Args:
            slots: of one actor.
            collections: those that are open.
            pump: starts what can start.
            end: ends a collection with an error.
        """
        self._slots = slots
        self._scheduler = scheduler
        self._collections = collections
        self._pump = pump
        self._end = end

    def actor_joined(self, name: str) -> None:
        """Use the actor's slots."""
        self._scheduler.add_actor(name, self._slots)
        self._pump()

    def actor_left(self, name: str) -> None:
        """Give the actor no more episodes."""
        self._scheduler.remove_actor(name)

    def running_on(self, name: str) -> int:
        """Number of episodes that the actor has."""
        return self._scheduler.running_on(name)

    def demand(self) -> int:
        """Number of episodes that run, or could run if there were slots for them."""
        return self._scheduler.demand

    def has_work(self) -> bool:
        """Whether there is a collection that somebody reads."""
        return any(not running.is_parked for running in self._collections.values())

    def pool_gave_up(self, error: RolloutError) -> None:
        """No environment actor is left: no collection can go on. One that nobody reads may later."""
        for running in list(self._collections.values()):
            if not running.is_parked:
                self._end(running, error)
