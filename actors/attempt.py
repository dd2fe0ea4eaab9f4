"""One attempt of an episode on an environment actor: how it ended, whatever happened to the actor.

Invariant: waiting for an attempt always comes to an end, and never raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayActorError, RayTaskError

from rollout_service.cluster import Reference
from rollout_service.collecting.request import EpisodeRequest, aborted_trajectory
from rollout_service.collecting.scheduler import Assignment, Scheduler
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.errors import Fault, FaultKind, RolloutError, last_cause
from rollout_service.record.trajectory import Trajectory
from rollout_service.termination import TerminationReason

if TYPE_CHECKING:
    from actors.pool import ActorPool

Result = tuple[EpisodeSummary, Reference[Trajectory] | None]
"""An episode's summary, and the reference of its trajectory in the object store; None: it is made when it is needed."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended."""

    fault: Fault | None
    """What went wrong."""
    result: Result | None = None
    """What came back; None: nothing did."""
    impossible: RolloutError | None = None
    """Why no attempt at any episode of this collection can succeed."""
    is_lost: bool = False
    """The attempt went with its actor."""
    is_handed_back: bool = False
    """The actor was taken away on purpose; the episode has nothing to do with it."""

    @property
    def is_cut(self) -> bool:
        """Whether it was told to end in flight: it could no longer be in time, or its collection ended."""
        return self.result is not None and self.result[0].termination_reason == TerminationReason.CANCELLED

    @property
    def versions(self) -> tuple[int, int] | None:
        """As in `EpisodeSummary`."""
        return None if self.result is None else self.result[0].versions

    def record(self, scheduler: Scheduler, assignment: Assignment, now: float) -> bool:
        """Tell the scheduler. Returns whether the episode is done now."""
        if self.is_handed_back:
            return scheduler.hand_back(assignment, now)
        if self.is_lost:
            return scheduler.lose(assignment, now)
        if self.is_cut:
            return scheduler.cut(assignment, now)
        was_answered = self.result is not None and self.result[0].was_answered
        scored = self.result is not None and self.result[0].reward is not None
        end = assignment, self.fault, self.versions, now
        return scheduler.finish(*end, was_answered=was_answered, scored=scored)


async def play(pool: ActorPool, actor: str, request: EpisodeRequest, over: RolloutError | None = None) -> Ending:
    """Play an episode on this actor, and wait for its end. An actor that is found dead is replaced.

    Args:
        over: why nobody waits for the episode any more, so that it is not played.
    """
    if over is not None:
        return Ending(Fault.of(FaultKind.SERVICE, over, retryable=False))
    try:
        reference, trajectory = pool.run_episode(actor, request)
        summary = await reference
        return Ending(summary.fault, (summary, trajectory))
    except RayTaskError as error:
        impossible = error.cause if isinstance(error.cause, RolloutError) else None
        retryable = None if impossible is None else False
        fault = Fault.of(FaultKind.SERVICE, error, message=last_cause(str(error)), retryable=retryable)
        return Ending(fault, impossible=impossible)
    except (RayActorError, KeyError) as error:
        handed_back = pool.lose(actor, error)
        fault = Fault.of(FaultKind.SERVICE, error, message="the environment actor died", retryable=True)
        return Ending(fault, is_lost=not handed_back, is_handed_back=handed_back)
    except Exception as error:  # whatever it is: an episode that never ends would hold its slot for ever
        return Ending(Fault.of(FaultKind.SERVICE, error))


def nothing(request: EpisodeRequest, fault: Fault) -> Result:
    """The result of an episode of which nothing came back."""
    trajectory = aborted_trajectory(request, fault)
    return EpisodeSummary.of(trajectory), ray.put(trajectory)


def too_old(how: str) -> Fault:
    """The fault of an episode that came too late in every attempt, with its remedy."""
    text = f"{how}: raise max_staleness, or update the weights less often"
    return Fault(FaultKind.SERVICE, "TooOld", text, retryable=False)


def lost(request: EpisodeRequest, fault: Fault) -> Reference[Trajectory]:
    """The reference of the trajectory that stands for one of which nothing is left."""
    reference: Reference[Trajectory] = ray.put(aborted_trajectory(request, fault))
    return reference
