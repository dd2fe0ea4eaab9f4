"""What a request may say of its own, against the service's, and what it may not say at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from rollout_service.collecting.continuation import Continuation
from rollout_service.collecting.planning import Planner
from rollout_service.collecting.request import CollectionRequest
from rollout_service.collecting.staleness import Staleness
from rollout_service.config.sampling import Sampling
from rollout_service.errors import TaskError
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.tau2.task_source import Tau2TaskSource
from tests.support import episodes


class Watched(episodes.LocalPolicy):
    """Remembers how it was asked to sample."""

    async def generate(self, input_ids: Any, sampling: Any, session_id: str, info: TurnInfo) -> Generation:
        self.sampling = sampling
        return await super().generate(input_ids, sampling, session_id, info)


@pytest.mark.parametrize("own", [None, Sampling(temperature=0.25, max_new_tokens=900, stop_token_ids=(5,))])
def test_a_request_s_own_sampling_goes_over_the_service_s(own):
    config = episodes.settings(policy__sampling={"temperature": 0.5})
    policy = Watched(config)
    runner = episodes.runner(config, policy)
    request = dataclasses.replace(episodes.request(episodes.task("mock")), sampling=own)
    trajectory = runner.run(request)
    chosen = own or config.policy.sampling
    assert policy.sampling.temperature == chosen.temperature
    assert policy.sampling.max_new_tokens == chosen.max_new_tokens
    stops = set(policy.sampling.stop_token_ids)
    assert stops == {*chosen.stop_token_ids, *episodes.codec().stop_token_ids}, "a turn still ends"
    assert trajectory.provenance.sampling == chosen.model_dump()
    assert "sampling" not in request.identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": "8"}, r"n is '8'\. Give a whole number"),
        ({"n": True}, r"n is True"),
        ({"n": 8.0}, r"n is 8\.0"),
        ({"n": 7, "group_size": 2}, r"n=7 is not a positive multiple of group_size=2\. Ask for 8"),
        ({"n": -4}, r"n=-4 is not a positive"),
        ({"n": 10**9}, r"n is 1000000000, more episodes than one collection takes"),
        ({"n": 10**5000}, r"n is .*, more episodes than one collection takes"),
        ({"n": -(10**5000)}, r"n=.* is not a positive multiple"),
        ({"group_size": 0}, r"group_size is 0\. Give a whole number from 1"),
        ({"group_size": None}, r"group_size is None"),
        ({"groups_per_update": 0}, r"groups_per_update is 0"),
        ({"domain": ["retail"]}, r"domain is \['retail'\]"),
        ({"domain": {"retail": -1}}, r"domain: the weight of retail is -1"),
        ({"split": 3}, r"split is 3"),
        ({"ids": "create_task_1"}, r"ids is 'create_task_1', not a list"),
        ({"shuffle": "no"}, r"shuffle is 'no'"),
        ({"sampler": "best"}, r"sampler is 'best'.*uniform, weighted, pass_rate"),
        ({"seed": "1"}, r"seed is '1'"),
        ({"sampling": {"temperature": 1.0}}, r"sampling is"),
        ({"max_attempts": 0}, r"max_attempts is 0"),
        ({"max_turns": 0}, r"max_turns is 0"),
        ({"max_staleness": -1}, r"max_staleness is -1"),
        ({"late": "never"}, r"late is 'never'"),
        ({"endless": 1}, r"endless is 1"),
        ({"n": 8, "keep": "useful"}, r"keep is 'useful'"),
        ({"n": 8, "keep": "informative"}, r"keep is 'informative', but group_size is 1: .* Give a group_size of at"),
        ({"keep": "reader"}, r"keep is 'reader', but n is None: .* Give n, or endless=True"),
        ({"n": 8, "most_groups": 9}, r"most_groups is 9, but no group is replaced without keep"),
        (
            {"n": 8, "group_size": 2, "keep": "reader", "most_groups": 3},
            r"most_groups is 3, fewer than the 4 groups of",
        ),
        ({"n": 8, "keep": "reader", "most_groups": 0}, r"most_groups is 0"),
        ({"n": 8, "keep": "reader", "most_groups": 10**7}, r"most_groups is 10000000"),
        ({"n": 8, "keep": "reader", "continues": Continuation(3)}, r"keep is given with continues"),
        ({"endless": True, "n": 8}, r"endless is True, and n is 8\. Leave out one of them"),
        ({"endless": True, "continues": Continuation(3)}, r"endless is True, and continues is"),
    ],
)
def test_a_collection_that_cannot_be_is_refused_where_it_is_asked_for(fields, message):
    with pytest.raises(TaskError, match=message) as caught:
        CollectionRequest(**fields)
    assert caught.value.remedy


def test_numpy_s_whole_numbers_and_a_mix_as_text_are_read():
    request = CollectionRequest(n=np.int64(8), group_size=np.int32(4), seed=np.int64(3), domain="retail=2,mock=1")
    assert (request.n, request.group_size, request.seed) == (8, 4, 3)
    assert type(request.n) is int
    assert request.domain == {"retail": 2.0, "mock": 1.0}


def test_attempts_and_staleness_are_the_collection_s_own_or_the_service_s():
    own = CollectionRequest(n=2, domain="mock", max_attempts=1, max_staleness=0, late="deliver", groups_per_update=4)
    planner = Planner(episodes.settings(service__max_staleness=2, service__max_attempts=5), Tau2TaskSource())
    collection, *_ = planner.plan(own, version=0)
    assert (collection.max_attempts, collection.staleness) == (1, Staleness(0, drop=False, groups_per_update=4))
    collection, *_ = planner.plan(CollectionRequest(n=2, domain="mock"), version=0)
    assert (collection.max_attempts, collection.staleness) == (5, Staleness(2, drop=True))


def test_a_planner_that_is_restored_goes_on_where_the_earlier_one_stopped():
    config = episodes.settings(tasks__domain="mock")
    request = CollectionRequest(n=5)
    first = Planner(config, Tau2TaskSource())
    first.plan(request, 0)
    first.plan(CollectionRequest(n=None), 0)
    second = Planner(config, Tau2TaskSource())
    position = first.samplers.position(request)
    assert position is not None
    second.samplers.restore([position])
    planned = [[(e.task, e.seed) for e in planner.plan(request, 0).drawing.requests] for planner in (first, second)]
    assert planned[0] == planned[1]
    assert first.samplers.position(CollectionRequest(n=5, seed=3)) is None


def test_an_endless_collection_draws_the_tasks_that_one_with_an_end_has_and_only_as_it_goes():
    config = episodes.settings(tasks__domain="mock")
    planner = Planner(config, Tau2TaskSource())
    whole = planner.plan(CollectionRequest(n=40, group_size=2, seed=7), 0).drawing.requests
    endless = planner.plan(CollectionRequest(group_size=2, seed=7, endless=True), 0).drawing
    assert endless.requests == []
    assert [group for group, _ in endless.reach(5)] == [0, 1, 2]
    endless.reach(39)
    assert [(e.task, e.seed, e.sample_index) for e in endless.requests] == [
        (e.task, e.seed, e.sample_index) for e in whole
    ]


@pytest.mark.parametrize("fields", [{"endless": True}, {"n": 1025, "keep": "reader"}])
def test_a_group_that_takes_long_to_draw_is_refused(fields):
    planner = Planner(episodes.settings(tasks__domain="mock"), Tau2TaskSource())
    with pytest.raises(TaskError, match=r"group_size is 1025.*Give at most 1024"):
        planner.plan(CollectionRequest(group_size=1025, **fields), 0)


def test_endless_and_other_collections_of_one_selection_take_turns_and_share_no_seed():
    planner = Planner(episodes.settings(tasks__domain="mock"), Tau2TaskSource())
    first, second = (planner.plan(CollectionRequest(group_size=2, endless=True), 0).drawing for _ in range(2))
    ended = planner.plan(CollectionRequest(n=8), 0).drawing
    for episode in range(0, 12, 2):
        first.reach(episode)
        second.reach(episode)
    after = planner.plan(CollectionRequest(n=8), 0)
    assert after.first_draw == 8 + 6 + 6
    seeds = [each.seed for drawing in (first, second, ended, after.drawing) for each in drawing.requests]
    assert len(seeds) == len(set(seeds)) == 8 + 12 + 12 + 8
