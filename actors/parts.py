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
from rollout_service.record.part import Part, discard_files, read_part
from rollout_service.record.part_files import PartFiles
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
        self._files = None if journal is None else PartFiles(Path(journal) / PARTS, _node())

    def write_here(self, trajectory: Trajectory) -> Part | None:
        """Store the trajectory, if the disk takes it. Call it in the episode's own thread.

        Returns:
            None: it was not stored, see `write`.
        """
        if self._files is None or trajectory.outcome is Outcome.ABORTED:
            return None
        try:
            return self._files.write(trajectory)
        except OSError as error:
            _log.warning(
                "Trajectory %s cannot be stored: %s. It is tried again; make room or repair the disk.",
                trajectory.trajectory_id,
                error,
            )
            return None

    async def write(self, trajectory: Trajectory) -> Part | None:
        """Store the trajectory, however long the disk is full or fails: its episode keeps its slot meanwhile.

        Returns:
            None: the service has no journal; or a fault ended the episode, and the part would say nothing more.
        """
        if self._files is None or trajectory.outcome is Outcome.ABORTED:
            return None
        pause = _FIRST_PAUSE
        while (part := await asyncio.to_thread(self.write_here, trajectory)) is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return part

    def begin_another_file(self) -> None:
        """Write nothing more into the current file: its parts are nobody's."""
        if self._files is not None:
            self._files.begin_another()


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def read(journal: str, part: Part) -> Reference[Trajectory]:
    """Have the part read on its node, or on another one if that is gone, in case they share the folder. The reference
    fails as that of a lost object does, if it cannot be read."""
    options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(part.node, soft=True)}
    reference: Reference[Trajectory] = ray.remote(read_part).options(**options).remote(Path(journal) / PARTS, part)
    return reference


def discard_elsewhere(folder: Path, parts: Iterable[Part]) -> None:
    """Have the files of those of the parts removed that lie on other nodes than this one. Returns at once."""
    here, elsewhere = _node(), defaultdict(list)
    for part in parts:
        elsewhere[part.node].append(part)
    for node in elsewhere.keys() - {here}:
        options = {"num_cpus": 0, "max_retries": 0}
        affinity = NodeAffinitySchedulingStrategy(node, soft=False)
        ray.remote(discard_files).options(**options, scheduling_strategy=affinity).remote(folder, elsewhere[node])
