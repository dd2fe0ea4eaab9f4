"""Samplers of tasks in a trainer's hands, on a real service."""

from __future__ import annotations

import asyncio

import pytest

from rollout_service.errors import TaskError


def test_tasks_are_drawn_by_what_the_service_learned_or_by_the_weights_that_a_trainer_gives(client):
    stream = client.stream(endless=True, group_size=2, sampler="pass_rate")
    groups = [next(stream) for _ in range(3)]
    facts = client.status()["collections"][stream.collection_id]["sampler"]
    assert (facts["sampler"], sum(facts["buckets"].values())) == ("pass_rate", 9)
    asyncio.run(stream.aclose())
    state = client.sampler_state(sampler="pass_rate")
    assert {f"mock/{group[0].task.task_id}" for group in groups} <= state["tasks"].keys()
    client.restore_sampler({**state, "tasks": {}}, sampler="pass_rate")
    assert asyncio.run(client.asampler_state(sampler="pass_rate")) == {**state, "tasks": {}}
    everything = {f"mock/{trajectory.task.task_id}": 0.0 for trajectory in client.collect(progress=False)}
    client.set_task_weights(everything | {"mock/create_task_1": 2.0}, sampler="weighted")
    batch = client.collect(4, group_size=2, sampler="weighted", progress=False)
    assert {trajectory.task.task_id for trajectory in batch} == {"create_task_1"}
    for refused, message in (({"retail/1": 1.0}, "no domain or task 'retail/1'"), ({"mock": -1.0}, "mock is -1.0")):
        with pytest.raises(TaskError, match=message):
            client.set_task_weights(refused, sampler="weighted")
    with pytest.raises(TaskError, match=r"An argument is 'n'\. Choose one of domain, split"):
        client.sampler_state(n=4)
