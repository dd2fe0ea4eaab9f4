"""Group: a finished group on its way from the coordinator to the trainer.

Invariant: it carries references, never token arrays: the trajectories go from the object store straight to the trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

from rollout_service.cluster import Reference
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Group:
    """The group's episodes, by sample index."""

    requests: list[EpisodeRequest]
    trajectories: list[Reference[Trajectory]]
    number: int = 0
    """Number of the group in its collection, by which the reader acknowledges it."""
    withheld: str = ""
    """Why it is no data, and is not to be given as such; empty: it is. See `rollout_service.collecting.partial`."""
    dropped: int = 0
    """Groups that the collection's filter had dropped by then."""
