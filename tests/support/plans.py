"""Plans of collections on the mock domain, played without a service."""

from __future__ import annotations

from typing import Any

from rollout_service.collecting.planning import Plan, Planner
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest
from rollout_service.tau2.task_source import Tau2TaskSource
from tests.support import episodes

TASKS = Tau2TaskSource()


def plan(**fields: Any) -> Plan:
    return Planner(episodes.settings(tasks__domain="mock"), TASKS).plan(CollectionRequest(**fields), version=0)


def place(request: EpisodeRequest) -> tuple[int, int, int]:
    return int(request.group_id.rpartition("-")[2]), request.sample_index, request.seed


def played(plan: Plan) -> list[list[EpisodeRequest]]:
    """The requests that the plan's collection starts, by group as it hands them out."""
    collection, groups = plan.collection, []
    while not collection.exhausted:
        while offers := collection.offers():
            plan.drawing.reach(offers[0])
            collection.start(offers[0])
            collection.finish(offers[0], None, "a")
        handout = collection.take()
        assert handout is not None
        size = collection.group_size
        members = range(handout.group * size, (handout.group + 1) * size)
        groups.append([plan.drawing.requests[e] for e in members if e not in collection.unstarted.before])
    return groups
