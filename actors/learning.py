"""What further draws of a running collection learn from its finished groups.

Invariant: a group is learned from once, before a filter may drop it, and the journal has what was learned before the
group is handed out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollout_service.journal.entries import Positioned

if TYPE_CHECKING:  # it imports this module
    from actors.running import RunningCollection


def observe(running: RunningCollection, group: int) -> None:
    """Have the sampler learn from this group, which is finished."""
    if group in running.observed:
        return
    running.observed.add(group)
    rewards = [running.rewards.get(episode) for episode in running.played(group)]
    if (learned := running.drawing.observe(group, rewards)) is not None:
        running.journal.record(Positioned(learned))
