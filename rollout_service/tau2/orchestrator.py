"""The official orchestrator, with its messages in the order of events.

Invariant: the clock on the wall decides nothing. τ² sorts messages by their times, so a clock that is set back while
the episode runs (the end of summer time, a correction over the network) would put answers before their questions. A
message therefore is never earlier than the one before it.
"""

from __future__ import annotations

from rollout_service.tau2 import compat


class Orchestrator(compat.Orchestrator):  # type: ignore[misc]
    """τ²'s own."""

    def get_trajectory(self) -> list[compat.Message]:
        """Copies of the messages so far, in order."""
        latest = ""
        for message in self.trajectory:
            latest = message.timestamp = max(latest, message.timestamp)
        messages: list[compat.Message] = (
            super().get_trajectory()
        )  # sorts them, and leaves those of one time as they are
        return messages
