"""PolicyView: what a coordinator knows of the policy's weights.

Invariant: the version never goes back.
"""

from __future__ import annotations

from collections.abc import Callable

from ray.exceptions import RayError

from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replicas import FleetState
from rollout_service.redaction import remember


class PolicyView:
    """The newest weight version, and what the fleet said last."""

    def __init__(self, version: int, reached: Callable[[int], None]) -> None:
        """
        Args:
            version: of the weights that the policy begins with.
            reached: called with each newer version.
        """
        self.version = version
        """Version of the weights that the trainer gave last, as the fleet told it."""
        self.state: FleetState | None = None
        """What the fleet said last; None: it said nothing to this process."""
        self._reached = reached

    @property
    def is_paused(self) -> bool:
        """Whether the trainer paused the policy."""
        return self.state is not None and self.state.desired.pause is not None

    def changed(self, state: FleetState) -> None:
        """Take what the fleet says."""
        for value in (*state.replica_variables.values(), *state.episode_variables.values()):
            remember(value)
        self.state = state
        self._reach(state.version)

    async def observe(self, fleet: FleetHandle, summary: EpisodeSummary) -> None:
        """Take what an episode sampled with an endpoint outside the service: only that tells of new weights there."""
        newest = summary.versions[1] if summary.versions is not None else 0
        if newest <= self.version:
            return
        try:
            await fleet.observe.remote(newest)
        except RayError:  # without the fleet, this actor is the only one that knows
            self._reach(newest)

    def _reach(self, version: int) -> None:
        if version > self.version:
            self.version = version
            self._reached(version)
