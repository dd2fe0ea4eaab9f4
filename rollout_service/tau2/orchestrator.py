"""The official orchestrator, with its messages in the order of events.

Invariant: the wall clock decides nothing. τ² sorts messages by their times, so a clock that is set back while the
episode runs (at the end of summer time, or by a correction over the network) would put answers before their questions.
Therefore no message is earlier than the one before it.
"""

from __future__ import annotations

from rollout_service.tau2 import compat


class Orchestrator(compat.Orchestrator):  # type: ignore[misc]
    """τ²'s own orchestrator, with messages in the order of events."""

    def get_trajectory(self) -> list[compat.Message]:
        """Copies of the messages so far, in order."""
        latest = ""
        for message in self.trajectory:
            latest = message.timestamp = max(latest, message.timestamp)
        # τ² sorts them, and the sort keeps the order of equal times.
        messages: list[compat.Message] = super().get_trajectory()
        return messages
