"""Says in words what a collection waits for, and what to do about it.

Invariant: this module only words it; every number comes from `Coordinator.status`. A reason that somebody can end has
its remedy beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HELD_BACK = {
    "buffer": "the reader is too slow, finished groups wait to be taken (service.max_buffered_groups)",
    "staleness": "without new weights a further group would be too old when it is taken (service.max_staleness)",
    "enough": "the groups under way are likely to be enough (keep)",
}
"""By `Collection.held_back`: why no new group starts, for the coordinator's log."""

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
        why = f", the last one failed: {error}" if error else "; each needs a free CPU of the cluster"
        parts.append(f"an environment actor to come up{why}")
    if status["paused"]:
        parts.append("client.resume(): the policy is paused")
    if pause := collection["paused_by"]:
        parts.append(f"the end of a pause: {pause}")
    if running := collection["running"]:
        parts.append(_running(running, collection))
    if again := collection["to_be_tried_again"]:
        parts.append(f"{_number(again, 'episode')} to be tried again after a fault")
    if collection["ready"]:
        parts.append(_reader(collection))
    elif collection["held_back"] == "staleness":
        parts.append(_new_weights(collection, status["weight_version"]))
    if row := collection["withheld_in_a_row"]:
        parts.append(
            f"a group with enough scored trajectories (min_group_size), which the last {row} had not: see faults"
        )
    if (groups := collection["groups"]) and groups["dropped"]:
        parts.append(_kept(groups))
    limit = status["admission"] and status["admission"]["limit"]
    if limit and collection["waiting"] != 0 and limit <= status["running"] < status["slots"]:
        room = f"it lets {limit} of {status['slots']} slots' episodes run at once (policy.admission)"
        parts.append(f"room in the replicas' memory for keys and values: {room}")
    if not parts and collection["waiting"] != 0:  # None: it is endless
        parts.append(_slot(status, collection))
    return "; ".join(parts) or "the next group to be handed over"


def _running(running: int, collection: Mapping[str, Any]) -> str:
    text = f"{_number(running, 'episode')} running"
    if (oldest := collection["oldest_seconds"]) is not None:
        places = sorted(collection["places"].items(), key=lambda item: -item[1])
        text += f", the oldest for {oldest:.0f} s, " + ", ".join(f"{count} in {place}" for place, count in places)
    return text


def _reader(collection: Mapping[str, Any]) -> str:
    text = f"its reader to take {_number(collection['ready'], 'finished group')}"
    if collection["held_back"] != "buffer":
        return text
    return f"{text}: no further one begins before; take them faster, or raise service.max_buffered_groups"


def _kept(groups: Mapping[str, Any]) -> str:
    kept, decided, most = groups["kept"], groups["kept"] + groups["dropped"], groups["most"]
    row = groups["dropped_in_a_row"]
    text = f"a group that keep keeps: it kept {kept} of {decided} so far, and dropped the last {row}"
    if kept:
        return text
    bound = "" if most is None else f"; at most {most} groups begin (most_groups)"
    return f"{text}{bound}; choose tasks that the policy solves sometimes, or another keep"


def _new_weights(collection: Mapping[str, Any], version: int) -> str:
    """Why new weights are needed. Where the trainer took all that it announced, only it can go on."""
    taken, most = collection["taken"], collection["groups_per_update"]
    text = "new weights: with older ones a further group would be too old (max_staleness)"
    if most is None or taken < most:
        return text
    return (
        f"{text}. Groups taken since weight version {version} came: {taken}; groups_per_update: {most}. Call "
        "client.update_weights(), or ask with a larger groups_per_update or max_staleness"
    )


def _slot(status: Mapping[str, Any], collection: Mapping[str, Any]) -> str:
    if status["running"] < status["slots"]:
        return "its next episode to start"
    others = status["running"] - collection["running"]
    used = f", {others} by other collections" if others else ""
    return (
        f"a free slot: all {status['slots']} are taken{used}; raise service.slots or service.actors, or this "
        "collection's weight"
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
