"""Gathering: all of a stream's trajectories in one batch.

Invariant: everything that was asked for comes back, or what is missing is said and what arrived is kept.
"""

from __future__ import annotations

from rollout_service.collecting.progress import CollectionProgress
from rollout_service.collecting.stream import GroupStream
from rollout_service.errors import RolloutError
from rollout_service.record.batch import IncompleteCollection, TrajectoryBatch
from rollout_service.record.trajectory import Trajectory


async def gathered(stream: GroupStream, progress: bool) -> TrajectoryBatch:
    """All trajectories of the stream, group by group in order of completion.

    Args:
        progress: show progress on stderr.

    Raises:
        IncompleteCollection: episodes failed after all attempts, the service was lost on the way, or a budget ended the
            collection early. It holds the trajectories that arrived.
        RolloutError: the collection was not accepted.
    """
    came: list[Trajectory] = []
    await stream.aopen()
    assert stream.episodes is not None, "an endless collection is never whole"
    with CollectionProgress(stream.episodes, enabled=progress) as bar:
        stream.tell = bar.waits
        try:
            async for group in stream:
                came.extend(group)
                bar.add(group)
        except RolloutError as error:
            raise IncompleteCollection.of(came, stream.episodes, str(error)) from error
    whole = IncompleteCollection.of(came, stream.episodes)
    if whole.failures or whole.missing:
        raise whole
    return whole.batch
