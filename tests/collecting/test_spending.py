"""What was spent against a budget, and a collection that begins no further group."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.request import CollectionRequest
from rollout_service.collecting.scheduler import Scheduler
from rollout_service.collecting.spending import Spending
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config import RolloutConfig
from rollout_service.config.budget import Budget
from rollout_service.errors import ConfigError, Fault, FaultKind, TaskError
from rollout_service.record.trajectory import Outcome
from tests.support.trajectories import make_trajectory

FAULT = Fault(FaultKind.SERVICE, "RayActorError", "the actor died", retryable=True)


def summary(policy_tokens: int = 0, user_tokens: int = 0, cost_usd: float | None = 0.0) -> EpisodeSummary:
    spent = {"policy_tokens": policy_tokens, "user_tokens": user_tokens, "cost_usd": cost_usd}
    return EpisodeSummary("t", Outcome.COMPLETED, "user_stop", 1.0, None, **spent)


SPENT = st.lists(st.builds(summary, st.integers(0, 50), st.integers(0, 50), st.sampled_from([0.0, 0.25, 1.0])))


@given(
    spent=SPENT,
    limits=st.fixed_dictionaries(
        {},
        optional={
            "usd": st.sampled_from([0.25, 1.0, 5.0]),
            "user_tokens": st.integers(1, 200),
            "policy_tokens": st.integers(1, 200),
            "episodes": st.integers(1, 8),
            "wall_seconds": st.sampled_from([1.0, 30.0]),
        },
    ),
    seconds=st.sampled_from([0.0, 2.0, 60.0]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_limit_is_reached_exactly_when_the_sum_over_all_attempts_reaches_it(spent, limits, seconds):
    spending = Spending(Budget(**limits))
    for one in spent:
        spending.begin()
        spending.add(one)
    sums = {
        "usd": sum(one.cost_usd for one in spent),
        "user_tokens": sum(one.user_tokens for one in spent),
        "policy_tokens": sum(one.policy_tokens for one in spent),
        "episodes": len(spent),
        "wall_seconds": seconds,
    }
    reached = {name for name, most in limits.items() if sums[name] >= most}
    limit = spending.limit(seconds)
    assert (limit is not None) == bool(reached)
    assert limit is None or limit.partition(":")[0] in reached


def test_a_price_that_is_not_known_ends_a_budget_of_dollars_and_no_other():
    for budget, ends in ((Budget(usd=5.0), True), (Budget(user_tokens=5), False)):
        spending = Spending(budget)
        spending.add(summary(cost_usd=None))
        assert (spending.limit(0.0) is not None) == ends
    assert "litellm has no price" in Spending(Budget(usd=1.0), is_priced=False).limit(0.0)


def test_the_summary_of_an_episode_says_what_it_spent():
    found = EpisodeSummary.of(make_trajectory())
    assert (found.policy_tokens, found.user_tokens, found.cost_usd) == (8, 120, 0.25)


@given(
    groups=st.integers(1, 6),
    group_size=st.integers(1, 3),
    slots=st.integers(1, 4),
    stop_after=st.integers(0, 12),
    data=st.data(),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_after_a_limit_no_group_begins_and_each_that_had_begun_is_handed_out_once(
    groups, group_size, slots, stop_after, data
):
    collection, scheduler = Collection("c", groups, group_size, max_attempts=2), Scheduler()
    scheduler.add_actor("a", slots)
    scheduler.add(collection)
    running, taken, begun, stopped = [], [], set(), False
    while not collection.exhausted:
        while not (stopped and len(begun) == 0) and (assignment := scheduler.next()) is not None:
            running.append(assignment)
            group = assignment.episode // group_size
            assert not stopped or group in begun
            begun.add(group)
            if len(running) >= stop_after and not stopped:
                stopped = True
                collection.begin_no_more()
                assert collection.unbegun == 0
        if running:
            assignment = running.pop(data.draw(st.integers(0, len(running) - 1)))
            scheduler.finish(assignment, data.draw(st.sampled_from([None, FAULT])))
        while (handout := collection.take()) is not None:
            taken.append(handout.group)
    assert sorted(taken) == sorted(begun)
    assert collection.waiting == 0
    assert collection.done == collection.size == len(begun) * group_size


def test_a_limit_before_the_first_episode_leaves_nothing():
    collection = Collection("c", 3, 2)
    collection.begin_no_more()
    assert (collection.exhausted, collection.size, collection.offers()) == (True, 0, [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"usd": 0}, r"budget\.usd .*is 0: nothing would ever begin\. Set more, or leave it out for no limit"),
        ({"user_tokens": -1}, r"budget\.user_tokens is -1 .*out of its range\. Set it to at least 1"),
        ({"episodes": 0}, r"budget\.episodes .*is 0: nothing"),
        ({"wall_seconds": 0.0}, r"budget\.wall_seconds .*is 0\.0: nothing"),
        ({"policy_tokens": True}, r"budget\.policy_tokens is True"),
        ({"dollars": 3}, r"budget\.dollars"),
        ({"usd": 1.0}, r"budget\.usd .*is set, but has no effect: no language model plays the user"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RolloutConfig.load(overrides={f"budget.{name}": value for name, value in given.items()}, environ={})
    assert caught.value.remedy


def test_a_request_takes_a_budget_only():
    assert CollectionRequest(budget=Budget(episodes=3)).budget == Budget(episodes=3)
    with pytest.raises(TaskError, match="budget is 3"):
        CollectionRequest(budget=3)
