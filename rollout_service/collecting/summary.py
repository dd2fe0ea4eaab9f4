"""EpisodeSummary: the few facts of a finished episode that scheduling and statistics need.

Invariant: it holds no token arrays, so it is small enough to pass through the coordinator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from rollout_service.errors import Fault, FaultKind
from rollout_service.metrics.measures import Measures
from rollout_service.record.part import Part
from rollout_service.record.trajectory import Outcome, Trajectory


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """What the coordinator reads of an episode. The trajectory itself stays in the object store."""

    trajectory_id: str
    outcome: Outcome
    termination_reason: str
    reward: float | None
    fault: Fault | None
    versions: tuple[int, int] | None = None
    """Oldest and newest weight version. The oldest is the minimum over the versions that sampled a token and those that
    computed cached keys and values a token attended to; the newest is the newest that sampled a token. None: nothing
    was sampled."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """The prompt tokens that the engine took from its prefix cache."""
    policy_tokens: int = 0
    """Tokens that the policy sampled."""
    user_tokens: int = 0
    """Tokens of the user simulator, those sent and those it wrote."""
    cost_usd: float | None = 0.0
    """US dollars that the user simulator, the judge and the reviewer cost; None: not known."""
    user_flaws: tuple[str, ...] | None = None
    """Names of the user simulator's flaws, see `Trajectory.user_flaws`; None: nobody looked."""
    part: Part | None = None
    """Where the trajectory is stored; None: the service has no journal, or nothing came of the episode."""
    task: str = ""
    """Name of its task, as `TaskRef` writes it; empty: not known."""
    user_review: tuple[str, ...] | None = None
    """What τ²'s reviewer found, see `UserReview.found`; None: there is no review."""
    review_failed: bool = False
    """Whether there should have been one."""
    context_tokens: int = 0
    """Tokens of its longest context: prompts and answers; 0: not known."""
    measures: Annotated[Measures | None, Field(exclude=True)] = None
    """What the metrics need beside; None: nothing came of the episode. No journal stores it."""

    @property
    def was_answered(self) -> bool:
        """Whether the endpoint whose fault ended the episode had answered it before. False for other faults."""
        kind = None if self.fault is None else self.fault.kind
        answered = {FaultKind.POLICY: self.policy_tokens, FaultKind.USER_SIMULATOR: self.user_tokens}
        return kind is not None and answered.get(kind, 0) > 0

    @classmethod
    def of(cls, trajectory: Trajectory) -> EpisodeSummary:
        """The trajectory's summary."""
        usage, review = trajectory.user_usage, trajectory.user_review
        found = None if review is None else review.found
        return cls(
            trajectory.trajectory_id,
            trajectory.outcome,
            trajectory.termination_reason,
            trajectory.reward,
            trajectory.fault,
            _versions(trajectory),
            trajectory.prompt_token_count,
            trajectory.cached_token_count,
            trajectory.policy_token_count,
            usage.prompt_tokens + usage.completion_tokens,
            trajectory.cost_usd,
            None if trajectory.user_flaws is None else tuple(trajectory.user_flaws),
            task=str(trajectory.task),
            user_review=None if found is None else tuple(found),
            review_failed=review is not None and found is None,
            context_tokens=max((len(segment.token_ids) for segment in trajectory.segments), default=0),
            measures=Measures.of(trajectory),
        )


def _versions(trajectory: Trajectory) -> tuple[int, int] | None:
    oldest, sampled = trajectory.oldest_version, trajectory.weight_version_range
    return None if oldest is None or sampled is None else (oldest, sampled[1])
