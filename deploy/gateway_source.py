"""Source: the groups of one collection as the gateway takes them from the coordinator.

Invariant: each group is given once, also if the coordinator is started again meanwhile, and its acknowledgement reaches
the coordinator that lives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from rollout_service.cluster import LostObject, answer, fetched, pause, repeated
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.collecting.group import Group
from rollout_service.collecting.stream import given
from rollout_service.errors import Interrupted, RolloutError
from rollout_service.record.trajectory import Trajectory


class Source:
    """The groups of one collection as the coordinator gives them, each once, also if it is started again meanwhile."""

    def __init__(self, coordinator: CoordinatorHandle, collection_id: str, client: str) -> None:
        """
        Args:
            client: id of the client that reads it, as the coordinator knows it.
        """
        self._coordinator = coordinator
        self._collection_id = collection_id
        self._client = client
        self._again = True
        """Whether groups that were not acknowledged are to come once more: an earlier gateway may have taken some."""
        self._given: set[int] = set()
        """Numbers of the groups that were given, as the coordinator numbers them."""
        self._held: dict[int, Group] = {}
        """Those of them that the reader does not have for good."""
        self._ahead: list[Group | None] = []
        """What came when a held group was asked for once more."""
        self._untold: list[int] = []
        """Numbers of groups that the reader has for good, of which the coordinator was not told."""
        self._asking = asyncio.Lock()

    async def take(self) -> Group | None:
        """The next group; None: there is no more."""
        async with self._asking:
            while True:
                group = self._ahead.pop() if self._ahead else await self._asked()
                if group is None:
                    return None
                if group.number not in self._given:
                    self._given.add(group.number)
                    self._held[group.number] = group
                    return group
                self._came_again(group)

    async def _asked(self) -> Group | None:
        """The coordinator's answer, which may be a group that was given before."""
        interruptions = 0
        while True:
            told = tuple(self._untold)
            try:
                asked = self._coordinator.next_group.remote(self._collection_id, told, self._again, self._client)
                group = await answer(asked)
            except Interrupted:
                self._again = True
                interruptions += 1
                await pause(interruptions)
                continue
            self._again = False
            self._untold = [number for number in self._untold if number not in told]
            return group

    def _came_again(self, group: Group) -> None:
        if (held := self._held.get(group.number)) is not None:
            held.trajectories[:] = group.trajectories  # the former ones went with a coordinator that died
        else:  # its death lost the acknowledgement
            self._untold.append(group.number)

    async def read(self, group: Group) -> list[Trajectory]:
        """The group's trajectories. If they went with the coordinator that owned them, its journal has them."""
        found = await fetched(group.trajectories)
        if any(isinstance(each, LostObject) for each in found) and not self._asking.locked():
            with contextlib.suppress(RolloutError):  # it ended: they are lost for good
                await self._ask_again_for(group)
            found = await fetched(group.trajectories)
        return [given(*item) for item in zip(group.requests, found, strict=True)]

    async def _ask_again_for(self, group: Group) -> None:
        async with self._asking:
            self._again = True
            while group.number in self._held:
                again = await self._asked()
                if again is None or again.number not in self._given:
                    self._ahead.append(again)
                    return
                self._came_again(again)
                if again.number == group.number:
                    return

    def release(self, group: Group) -> None:
        """Note that the reader has the group for good."""
        self._held.pop(group.number, None)
        self._untold.append(group.number)

    async def drop(self, groups: Iterable[Group]) -> None:
        """Have others in the places of these groups, which the reader does not keep. Returns when that is safe.

        Raises:
            ServiceError: the collection keeps every group.
        """
        numbers = tuple(group.number for group in groups)
        if numbers:
            await repeated(lambda: self._coordinator.drop.remote(self._collection_id, numbers, self._client))
        for number in numbers:
            self._held.pop(number, None)

    async def tell(self) -> None:
        """Tell the coordinator which groups the reader has for good. Returns when that is safe."""
        told = tuple(self._untold)
        if told:
            await answer(self._coordinator.acknowledge.remote(self._collection_id, told, self._client))
            self._untold = [number for number in self._untold if number not in told]
