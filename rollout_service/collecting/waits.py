"""Says in words what a collection waits for.

Invariant: this module only words it; every number comes from `Coordinator.status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HELD_BACK = {
    "buffer": "the reader is too slow, finished groups wait to be taken (service.max_buffered_groups)",
    "staleness": "without new weights a further group would be too old when it is taken (service.max_staleness)",
}
"""By `Collection.held_back`: why no new group starts."""

NO_SLOT = "no slot is free"
NO_ROOM = "the replicas' memory for keys and values has no room for further episodes (policy.admission)"
"""Why no waiting episode starts."""


def waits_for(status: Mapping[str, Any], collection_id: str) -> str:
    """Why the next group of the collection is not there yet, according to the service's status."""
    collection = status["collections"].get(collection_id)
    if collection is None:
        return "the service's answer: it does not know the collection (yet, or any more)"
    if collection["parked"]:
        left = collection.get("kept_seconds")
        until = "" if left is None else f", within {left:.0f} s (service.keep_collections_seconds)"
        return f"its reader, which is gone: client.reopen({collection_id!r}) reads on{until}"
    parts = []
    if status["actors"] == 0:
        error = status["start_error"]
        parts.append("an environment actor to come up" + (f", the last one failed: {error}" if error else ""))
    if status["paused"]:
        parts.append("client.resume(): the policy is paused")
    if pause := collection["paused_by"]:
        parts.append(f"the end of a pause: {pause}")
    if running := collection["running"]:
        parts.append(_running(running, collection))
    if again := collection["to_be_tried_again"]:
        parts.append(f"{_episodes(again)} to be tried again after a fault")
    if collection["held_back"] == "staleness":
        parts.append("new weights: with older ones a further group would be too old (max_staleness)")
    limit = status["admission"] and status["admission"]["limit"]
    if limit and collection["waiting"] != 0 and limit <= status["running"] < status["slots"]:
        room = f"it lets {limit} of {status['slots']} slots' episodes run at once (policy.admission)"
        parts.append(f"room in the replicas' memory for keys and values: {room}")
    if not parts and collection["waiting"] != 0:  # None: it is endless
        parts.append(f"a free slot: all {status['slots']} are taken")
    return "; ".join(parts) or "the next group to be handed over"


def _running(running: int, collection: Mapping[str, Any]) -> str:
    text = f"{_episodes(running)} running"
    if (oldest := collection["oldest_seconds"]) is not None:
        places = sorted(collection["places"].items(), key=lambda item: -item[1])
        text += f", the oldest for {oldest:.0f} s, " + ", ".join(f"{count} in {place}" for place, count in places)
    return text


def _episodes(count: int) -> str:
    return f"{count} episode{'' if count == 1 else 's'}"
