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
    """All trajectories of the stream, group by group in order of completion. With a `min_group_size`, the aborted ones
    of a group that is data are among them.

    Args:
        progress: show progress on stderr.

    Raises:
        IncompleteCollection: episodes failed after all attempts, or with a `min_group_size` a group has too few scored
            ones; the service was lost on the way, or a budget ended the collection early. It holds the trajectories
            that arrived.
        RolloutError: the collection was not accepted.
    """
    came: list[Trajectory] = []
    withheld: list[Trajectory] = []
    await stream.aopen()
    assert stream.episodes is not None, "an endless collection is never whole"
    with CollectionProgress(stream.episodes, enabled=progress) as bar:
        stream.tell = bar.waits

        def withhold(group: list[Trajectory], reason: str) -> None:
            withheld.extend(group)
            bar.withhold(group, reason)

        stream.withheld = withhold
        try:
            async for group in stream:
                came.extend(group)
                bar.add(group, stream.dropped)
        except RolloutError as error:
            raise IncompleteCollection.of(came, stream.episodes, str(error), withheld) from error
    if stream.takes_partial and not withheld and len(came) == stream.episodes:
        return TrajectoryBatch(came)
    whole = IncompleteCollection.of(came, stream.episodes, withheld=withheld)
    if whole.failures or whole.missing or whole.withheld:
        raise whole
    return whole.batch
