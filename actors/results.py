"""Results: what an episode's last attempt came to.

Invariant: an episode that came to nothing has a result as well, and its fault says why.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import actors.parts as stored_parts
from actors.attempt import Ending, Result, lost, nothing, too_old
from rollout_service.cluster import Reference
from rollout_service.errors import POISON_TASK, Fault, FaultKind
from rollout_service.record.trajectory import Trajectory

if TYPE_CHECKING:  # it imports this module
    from actors.running import RunningCollection


def result_of(running: RunningCollection, episode: int, ending: Ending) -> Result:
    """The result of an episode that is done with this attempt."""
    it = running.collection
    request = replace(running.requests[episode], attempt=it.state(episode).attempts)
    if episode in it.quarantined:
        text = (
            f"task {request.task} is quarantined: {it.max_losses} attempts at this episode lost their environment "
            "actor (service.max_losses)"
        )
        return nothing(request, Fault(FaultKind.SERVICE, POISON_TASK, text, retryable=False))
    if (cuts := it.state(episode).cuts) and ending.is_cut:
        return nothing(request, too_old(f"{cuts} updates of the weights ended it before it could be in time"))
    return ending.result or nothing(request, ending.fault or Fault.of(FaultKind.SERVICE, RuntimeError()))


def expired(running: RunningCollection, episode: int, versions: tuple[int, int] | None, version: int) -> Result:
    """The result in the place of one that is too old for weight version `version`.

    Args:
        versions: of the episode, as in `EpisodeSummary`.
    """
    text = (
        f"its oldest weight version was {None if versions is None else versions[0]} when the trainer was at {version}, "
        f"in every attempt: max_staleness is {running.collection.staleness.maximum}"
    )
    return nothing(running.requests[episode], too_old(text))


def reference(running: RunningCollection, episode: int, result: Result) -> Reference[Trajectory]:
    """The reference of an episode's trajectory."""
    summary, in_memory = result
    if in_memory is not None:
        return in_memory
    if summary.part is not None and running.parts is not None:
        return stored_parts.read(running.parts, summary.part)
    fault = summary.fault or Fault(FaultKind.SERVICE, "LostObject", "its trajectory was not stored", retryable=True)
    return lost(running.requests[episode], fault)
