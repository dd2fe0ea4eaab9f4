"""Parts between the actors: an environment actor writes them, and whoever gets a group reads them.

Invariant: the coordinator handles references only. A part is read on the node on whose disk it lies.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import rollout_service.logs as logs
from rollout_service.cluster import Reference
from rollout_service.journal.place import PARTS
from rollout_service.record.part import Part, discard_parts, read_part, write_part
from rollout_service.record.trajectory import Outcome, Trajectory

_log = logs.logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 16.0
"""Seconds until a part that could not be written is tried again; the time doubles."""


class PartWriter:
    """Writes the finished trajectories of one environment actor, off its event loop."""

    def __init__(self, journal: str | None) -> None:
        """
        Args:
            journal: as in `service.journal`.
        """
        self._folder = None if journal is None else Path(journal) / PARTS

    async def write(self, trajectory: Trajectory) -> Part | None:
        """Store the trajectory, however long the disk is full or fails: its episode keeps its slot meanwhile.

        Returns:
            None: the service has no journal; or a fault ended the episode, and the part would say nothing more.
        """
        if self._folder is None or trajectory.outcome is Outcome.ABORTED:
            return None
        node, pause = str(ray.get_runtime_context().get_node_id()), _FIRST_PAUSE
        while True:
            try:
                return await asyncio.to_thread(_write, self._folder, trajectory, node)
            except OSError as error:
                _log.warning(
                    "Trajectory %s cannot be stored: %s. It is tried again; make room or repair the disk.",
                    trajectory.trajectory_id,
                    error,
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)


def _write(folder: Path, trajectory: Trajectory, node: str) -> Part:
    folder.mkdir(parents=True, exist_ok=True)  # on another node than the coordinator's, nobody else made it
    return write_part(folder, trajectory, node)


def read(journal: str, part: Part) -> Reference[Trajectory]:
    """Have the part read on its node. The reference fails as that of a lost object does, if it cannot be read."""
    options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(part.node, soft=False)}
    reference: Reference[Trajectory] = ray.remote(read_part).options(**options).remote(Path(journal) / PARTS, part)
    return reference


def discard_elsewhere(folder: Path, parts: Iterable[Part]) -> None:
    """Have those of the parts removed that lie on other nodes than this one. Returns at once."""
    here, elsewhere = str(ray.get_runtime_context().get_node_id()), defaultdict(list)
    for part in parts:
        elsewhere[part.node].append(part)
    for node in elsewhere.keys() - {here}:
        options = {"num_cpus": 0, "max_retries": 0}
        affinity = NodeAffinitySchedulingStrategy(node, soft=False)
        ray.remote(discard_parts).options(**options, scheduling_strategy=affinity).remote(folder, elsewhere[node])
