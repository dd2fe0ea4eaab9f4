"""Staleness: how old a trajectory may be when the trainer gets it.

Invariant: age is counted in weight versions, never in time: the trainer's version minus the oldest in the trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Staleness:
    """The age limit of a collection, and what happens to trajectories above it."""

    maximum: int | None = None
    """Largest age at which a trajectory is handed out. None: no limit."""
    drop: bool = True
    """Play a trajectory that is too old again. False: hand it out and count it."""
    groups_per_update: int | None = None
    """Groups that the trainer takes between two weight updates. None: not known."""

    def late(self, oldest: int | None, version: int) -> bool:
        """Whether a trajectory whose oldest version is `oldest` is too old when the trainer is at `version`."""
        return self.maximum is not None and oldest is not None and version - oldest > self.maximum

    def min_version(self, version: int) -> int | None:
        """The oldest version with which an episode in flight can still be in time when the trainer is at `version`. It
        will be at that version or a later one when the episode's group is handed out. None: at any age an episode is
        worth its end."""
        return None if self.maximum is None or not self.drop else version - self.maximum

    def in_time(self, position: int) -> bool:
        """Whether a group that starts now will be young enough when it is handed out.

        Args:
            position: groups that the trainer takes between the last weight update and this group. After
                `position // groups_per_update` more updates it is this group's turn.
        """
        if self.maximum is None or self.groups_per_update is None:
            return True
        return position // self.groups_per_update <= self.maximum


ANY_AGE = Staleness()
"""No age limit."""
