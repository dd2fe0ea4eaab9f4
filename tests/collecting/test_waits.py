"""What a collection is said to wait for."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_service.collecting.waits import waits_for


def said(service: dict[str, Any] | None = None, **collection: Any) -> str:
    idle = {"waiting": 0, "running": 0, "places": {}, "oldest_seconds": None, "to_be_tried_again": 0, "held_back": None}
    idle |= {"paused_by": None, "parked": False, "ready": 0, "taken": 0, "groups_per_update": None}
    idle |= {"withheld_in_a_row": 0, "groups": None}
    status: dict[str, Any] = {
        "actors": 2,
        "start_error": None,
        "paused": False,
        "slots": 32,
        "running": 32,
        "weight_version": 4,
    }
    status |= {"admission": None, "collections": {"c": idle | collection}}
    return waits_for(status | (service or {}), "c")


@pytest.mark.parametrize(
    ("service", "collection", "text"),
    [
        (
            {},
            {"running": 12, "oldest_seconds": 300.4, "places": {"the policy": 2, "the user simulator": 10}},
            "12 episodes running, the oldest for 300 s, 10 in the user simulator, 2 in the policy",
        ),
        ({}, {"running": 1}, "1 episode running"),
        ({}, {"to_be_tried_again": 2}, "2 episodes to be tried again after a fault"),
        ({}, {"held_back": "staleness", "waiting": 8}, "new weights: with older ones a further group would be too old"),
        (
            {},
            {"waiting": 8, "paused_by": "the last episodes all ended with a fault (tried again in 4 s)"},
            "the end of a pause: the last episodes all ended with a fault (tried again in 4 s)",
        ),
        (
            {},
            {"held_back": "staleness", "waiting": 8, "taken": 3, "groups_per_update": 4},
            "new weights: with older ones a further group would be too old (max_staleness)",
        ),
        (
            {},
            {"held_back": "staleness", "waiting": 8, "taken": 4, "groups_per_update": 4},
            "(max_staleness). Groups taken since weight version 4 came: 4; groups_per_update: 4. Call "
            "client.update_weights(), or ask with a larger groups_per_update or max_staleness",
        ),
        (
            {},
            {"held_back": "buffer", "waiting": 8, "ready": 64},
            "its reader to take 64 finished groups: no further one begins before; take them faster, or raise "
            "service.max_buffered_groups",
        ),
        ({}, {"ready": 1}, "its reader to take 1 finished group"),
        (
            {},
            {"running": 1, "withheld_in_a_row": 9},
            "1 episode running; a group with enough scored trajectories (min_group_size), which the last 9 had not",
        ),
        (
            {},
            {"running": 1, "groups": {"kept": 0, "most": 80, "dropped": 40, "dropped_in_a_row": 40}},
            "1 episode running; a group that keep keeps: it kept 0 of 40 so far, and dropped the last 40; at most 80 "
            "groups begin (most_groups); choose tasks that the policy solves sometimes, or another keep",
        ),
        (
            {},
            {"running": 1, "groups": {"kept": 2, "most": None, "dropped": 38, "dropped_in_a_row": 3}},
            "a group that keep keeps: it kept 2 of 40 so far, and dropped the last 3",
        ),
        (
            {},
            {"waiting": 8},
            "a free slot: all 32 are taken, 32 by other collections; raise service.slots or service.actors, or this",
        ),
        ({"running": 31}, {"waiting": 8}, "its next episode to start"),
        (
            {"admission": {"limit": 20}, "running": 20},
            {"waiting": 8, "running": 20},
            "room in the replicas' memory for keys and values: it lets 20 of 32 slots' episodes run at once",
        ),
        ({"admission": {"limit": 20}, "running": 19}, {"waiting": 8}, "its next episode to start"),
        ({"admission": {"limit": None}}, {"waiting": 8}, "a free slot"),
        ({"paused": True}, {"running": 3}, "client.resume(): the policy is paused; 3 episodes running"),
        (
            {"actors": 0, "start_error": "no memory"},
            {"waiting": 8},
            "an environment actor to come up, the last one failed: no memory",
        ),
        ({"actors": 0}, {"waiting": 8}, "an environment actor to come up; each needs a free CPU of the cluster"),
        ({}, {"parked": True, "waiting": 8}, "its reader, which is gone: client.reopen('c') reads on"),
        ({}, {}, "the next group to be handed over"),
        ({"collections": {}}, {}, "the service's answer"),
    ],
)
def test_it_is_told_from_the_service_s_status(service, collection, text):
    assert text in said(service, **collection)
