"""The official orchestrator, with its messages in the order of events.

Invariant: the wall clock decides nothing. τ² sorts messages by their times, so a clock that is set back while the
episode runs (at the end of summer time, or by a correction over the network) would put answers before their questions.
Therefore no message is earlier than the one before it.
"""

from __future__ import annotations

import copy

from rollout_service.tau2 import compat


class Orchestrator(compat.Orchestrator):  # type: ignore[misc]
    """τ²'s own orchestrator, with messages in the order of events."""

    def initialize(self) -> None:
        """Bring everything to the task's initial state, as τ²'s own method does."""
        super().initialize()
        self.environment.wrote.clear()  # calls of the task's own messages may have ids of the policy's

    def get_trajectory(self) -> list[compat.Message]:
        """Copies of the messages so far, in order and numbered, as τ²'s own method gives them: it sorts by time, which
        changes nothing here, and copies every message twice."""
        latest = ""
        copies: list[compat.Message] = []
        for place, message in enumerate(self.trajectory):
            latest = message.timestamp = max(latest, message.timestamp)
            copied = copy.deepcopy(message)
            copied.turn_idx = place
            copies.append(copied)
        return copies
