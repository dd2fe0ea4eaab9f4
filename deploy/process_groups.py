"""ProcessGroups: the process groups for weights that a replica's engine is in.

Invariant: each group that the engine joined is left once, and what waits in it meanwhile ends with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from deploy.engines.base import Engine
from deploy.membership import Membership
from rollout_service.errors import WeightError, first_line
from rollout_service.policy.weights import BroadcastTensors, Rendezvous, WeightSource

T = TypeVar("T")

_LEAVE_SECONDS = 10.0
"""How long an engine may take to leave a process group. It takes milliseconds, unless the engine waits in the group."""


class ProcessGroups:
    """All groups of one replica."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._memberships: dict[str, Membership] = {}
        self.lost: tuple[str, str] | None = None
        """See `ReplicaState.lost_group`."""

    async def join(self, rendezvous: Rendezvous, rank: int, replica: str) -> None:
        """Join a group, see `Engine.join`.

        Raises:
            WeightError: the group was not formed in time.
        """
        self._memberships[rendezvous.name] = Membership(rendezvous)
        seconds = rendezvous.timeout_seconds
        try:
            await asyncio.wait_for(self._engine.join(rendezvous, rank), seconds)
        except TimeoutError:
            raise WeightError(
                f"Replica {replica} could not join the group {rendezvous.name!r} in {seconds:g} s: a rank never came.",
                "Check that every node can reach the trainer's address, and make another group.",
            ) from None
        except Exception as error:  # the trainer hears of it at once, while other replicas still wait
            self.lost = rendezvous.name, first_line(error)
            raise

    async def during(self, source: WeightSource, work: Coroutine[Any, Any, T]) -> T:
        """The result of work that brings weights from this source, perhaps through a group.

        Raises:
            GroupLost: the trainer or the group is gone.
            Exception: what the work raised.
        """
        if not isinstance(source, BroadcastTensors):
            return await work
        membership = self._memberships.get(source.group)
        try:
            return await (work if membership is None else membership.during(work))
        except BaseException as error:
            self.lost = source.group, first_line(error)
            raise

    async def leave(self, name: str) -> None:
        """Leave the group, also while something waits in it.

        Raises:
            TimeoutError: the engine still waits in the group, perhaps forever.
        """
        membership = self._memberships.pop(name, None)
        if membership is not None:
            await membership.end()
        await asyncio.wait_for(self._engine.leave(name), _LEAVE_SECONDS)
