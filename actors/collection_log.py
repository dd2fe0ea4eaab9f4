"""CollectionLog: what the log says of a collection's episodes.

Invariant: each line says what follows from what went wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import actors.filtering as filtering
import rollout_service.logs as logs
from actors.attempt import Ending
from rollout_service.collecting.request import EpisodeRequest

if TYPE_CHECKING:  # it imports this module
    from actors.running import RunningCollection

_log = logs.logger(__name__)


def log_held_back(reasons: Mapping[str, str | None]) -> None:
    """Log why no episode of some collections starts, now and then.

    Args:
        reasons: by collection; None: there is none.
    """
    for name, reason in reasons.items():
        if reason and logs.rate_limit.is_due(kind := f"held back: {reason}"):
            _log.info("Collection %s is held back: %s.", name, reason, extra=logs.event(kind))


class CollectionLog:
    """The log lines of one collection."""

    def __init__(self) -> None:
        self._pauses = 0
        """Pauses of the current common fault that were logged."""

    def ending(self, running: RunningCollection, request: EpisodeRequest, episode: int, ending: Ending) -> None:
        """Log what went wrong in an attempt, and what follows from it. Call it when the end was recorded."""
        if running.error is not None or filtering.is_gone(running, episode // running.collection.group_size):
            return  # the collection ended, or has enough groups, and so its episodes end
        name, fault, collection = request.trajectory_id, ending.fault, running.collection
        if fault is not None and not ending.is_handed_back:
            logs.log_fault(_log, name, fault, request.attempt)
        if episode in collection.quarantined:
            text = "Episode %s of task %s is quarantined: %d attempts lost their environment actor."
            _log.warning(text, name, request.task, collection.max_losses)
        elif collection.state(episode).done:
            pass
        elif ending.is_cut:
            text = "Episode %s starts again: after an update its oldest tokens are too old (max_staleness)."
            _log.info(text, name, extra=logs.event("cut"))
        elif fault is None:
            pass
        elif ending.is_lost or ending.is_handed_back:
            why = "went away" if ending.is_handed_back else "was lost"
            text = "Episode %s is played again: its environment actor %s, which does not count as an attempt."
            _log.info(text, name, why, extra=logs.event(f"again {why}"))
        elif not collection.breaker.is_open:
            attempt = collection.state(episode).charged + 1, collection.max_attempts
            text = "Episode %s is tried again (attempt %d of %d): %s: %s"
            _log.info(text, name, *attempt, fault.kind, fault.message, extra=logs.event(f"retry {fault.kind}"))
        self._pause(running)

    def _pause(self, running: RunningCollection) -> None:
        """Log when a common fault stops the collection, and when it goes on."""
        breaker = running.collection.breaker
        if breaker.pauses == self._pauses:
            return
        if breaker.pauses:
            event = logs.event(f"pause {running.name}")
            _log.warning("Collection %s pauses: %s.", running.name, running.pause, extra=event)
        else:
            _log.info("Collection %s goes on: an episode ended without the fault.", running.name)
        self._pauses = breaker.pauses
