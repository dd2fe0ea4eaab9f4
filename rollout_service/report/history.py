"""History: how a run went on, by collection and by weight version.

Invariant: collections and versions stand in the order in which they were read or numbered, and every mean says of how
many episodes it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rollout_service.record.interval import wilson_interval
from rollout_service.record.trajectory import Trajectory


@dataclass(slots=True)
class Point:
    """The scored episodes of a collection or of a weight version."""

    scored: int = 0
    reward_sum: float = 0.0

    @property
    def mean(self) -> float:
        """Mean reward."""
        return self.reward_sum / self.scored

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean as of independent episodes, see `wilson_interval`."""
        return wilson_interval(min(max(self.mean, 0.0), 1.0), self.scored)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {"scored": self.scored, "mean_reward": self.mean, "interval": list(self.interval)}


@dataclass(slots=True)
class History:
    """Rewards and staleness over a run."""

    collections: dict[str, Point] = field(default_factory=dict)
    """By collection id, in the order of the files."""
    versions: dict[int, Point] = field(default_factory=dict)
    """By the newest weight version that sampled a token of the episode."""
    staleness: Counter[int] = field(default_factory=Counter)
    """Episodes by staleness, as far as the files show it: the newest version that sampled for this or an earlier
    episode of the files, minus the oldest version of this one. The trainer may have been further by then."""
    _newest: int | None = None

    def add(self, trajectory: Trajectory) -> None:
        """Count one episode."""
        oldest, sampled = trajectory.oldest_version, trajectory.weight_version_range
        if oldest is not None and sampled is not None:
            self._newest = sampled[1] if self._newest is None else max(self._newest, sampled[1])
            self.staleness[self._newest - oldest] += 1
        if trajectory.is_scored and trajectory.reward is not None:
            points = [self.collections.setdefault(trajectory.collection_id, Point())]
            if sampled is not None:
                points.append(self.versions.setdefault(sampled[1], Point()))
            for point in points:
                point.scored += 1
                point.reward_sum += trajectory.reward

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {
            "collections": {name: point.to_dict() for name, point in self.collections.items()},
            "weight_versions": {str(version): self.versions[version].to_dict() for version in sorted(self.versions)},
            "staleness": {str(steps): self.staleness[steps] for steps in sorted(self.staleness)},
        }
