"""What each sampler promises: probabilities that hold, states that go on, and errors that say what to do."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.errors import TaskError
from rollout_service.task_ref import TaskRef
from rollout_service.task_sampling.estimate import Estimate
from rollout_service.task_sampling.pass_rate import PassRateSampler
from rollout_service.task_sampling.pool import TaskPool, name_of
from rollout_service.task_sampling.sampler import TaskSampler
from rollout_service.task_sampling.uniform import UniformSampler
from rollout_service.task_sampling.weighted import WeightedSampler


def pool(**sizes: int) -> TaskPool:
    """A pool of so many tasks in each domain, of equal weights."""
    tasks = {domain: [TaskRef(domain, "base", str(n), n) for n in range(size)] for domain, size in sizes.items()}
    return TaskPool(tasks, dict.fromkeys(sizes, 1.0))


MIXED = pool(retail=5, airline=3)


def drawn(sampler: TaskSampler, count: int) -> list[TaskRef]:
    return [sampler.draw() for _ in range(count)]


POOLS = st.builds(
    lambda sizes, weights: TaskPool(
        pool(**sizes).tasks, {domain: weights[place] for place, domain in enumerate(sizes)}
    ),
    st.dictionaries(st.sampled_from(["retail", "airline", "telecom"]), st.integers(1, 6), min_size=1),
    st.tuples(*[st.floats(0.1, 10)] * 3),
)

GROUPS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(0, 1)), max_size=8)
"""Rewards of a group."""

OBSERVED = st.lists(st.tuples(st.integers(0, 17), GROUPS), max_size=30)
"""Groups by place of their task."""


def observe(sampler: TaskSampler, groups: list[tuple[int, list[float | None]]]) -> None:
    for place, rewards in groups:
        sampler.observe(sampler.whole[place % len(sampler.whole)], rewards)


# Uniform -------------------------------------------------------------------------------------------------------------


def test_each_epoch_has_every_task_once_in_another_order():
    sampler = UniformSampler(pool(mock=9), seed=1)
    first, second = drawn(sampler, 9), drawn(sampler, 9)
    assert sorted(first) == sorted(second) == sorted(sampler.whole)
    assert first != second
    assert sampler.drawn == 18


def test_without_shuffling_the_order_is_the_split_s():
    sampler = UniformSampler(pool(mock=9), shuffle=False)
    assert drawn(sampler, 18) == sampler.whole * 2


def test_the_uniform_order_is_that_of_earlier_releases():
    order = [name_of(task) for task in drawn(UniformSampler(MIXED, seed=7), 10)]
    assert order[:5] == ["airline/0", "retail/2", "airline/1", "retail/0", "airline/2"]
    assert order[5:] == ["retail/4", "airline/0", "retail/3", "airline/2", "retail/1"]


def test_a_mix_follows_its_weights_and_serves_each_domain_in_epochs():
    tasks = TaskPool(pool(mock=9, airline=50).tasks, {"mock": 1.0, "airline": 3.0})
    airline = [task for task in drawn(UniformSampler(tasks, seed=0), 400) if task.domain == "airline"]
    assert len(airline) == 300
    assert len(set(airline[:50])) == 50


def test_a_short_collection_draws_from_every_domain_of_its_mix():
    mix = pool(mock=3, airline=3, retail=3, telecom=3)
    for seed in range(10):
        assert {task.domain for task in drawn(UniformSampler(mix, seed=seed), 4)} == set(mix.tasks)


# What holds for all --------------------------------------------------------------------------------------------------


def of_kind(kind: str, tasks: TaskPool, seed: int) -> TaskSampler:
    if kind == "uniform":
        return UniformSampler(tasks, seed=seed)
    if kind == "weighted":
        return WeightedSampler(tasks, {name_of(tasks.whole[0]): 3.0}, seed=seed)
    return PassRateSampler(tasks, seed=seed)


@given(st.sampled_from(["uniform", "weighted", "pass_rate"]), POOLS, st.integers(0, 9), OBSERVED, OBSERVED)
@settings(max_examples=40)
def test_a_sampler_goes_on_identically_from_its_stored_state(kind, tasks, seed, before, after):
    first = of_kind(kind, tasks, seed)
    drawn(first, 5)
    observe(first, before)
    drawn(first, 3)
    second = of_kind(kind, tasks, seed)
    second.restore(json.loads(json.dumps(first.state())))
    for sampler in (first, second):
        observe(sampler, after)
    assert drawn(first, 10) == drawn(second, 10)
    assert first.state() == second.state()
    assert (first.drawn, second.drawn) == (18, 18)


@given(POOLS, st.integers(0, 9), OBSERVED, st.floats(0.01, 1))
@settings(max_examples=40)
def test_whatever_was_observed_each_task_keeps_the_stated_share(tasks, seed, groups, floor):
    sampler = PassRateSampler(tasks, seed=seed, floor=floor)
    observe(sampler, groups)
    chances = sampler.probabilities
    assert math.fsum(chances.values()) == pytest.approx(1)
    total = sum(tasks.weights.values())
    for task in tasks.whole:
        least = tasks.weights[task.domain] / total * floor / len(tasks.tasks[task.domain])
        assert chances[task] >= least * (1 - 1e-9) > 0


def furthest(sampler: WeightedSampler | PassRateSampler, draws: int) -> float:
    """The largest distance of a task's count from what its probability says, in standard deviations. 5 of them are
    exceeded by one count in 3.5 million; the seeds are fixed, so it is the same in every run."""
    chances, counts = sampler.probabilities, Counter(drawn(sampler, draws))
    return max(abs(counts[task] - draws * p) / math.sqrt(draws * p * (1 - p)) for task, p in chances.items() if p)


@pytest.mark.parametrize("seed", range(5))
def test_tasks_are_drawn_as_often_as_their_probabilities_say(seed):
    weighted = WeightedSampler(MIXED, {"retail": 3, "retail/0": 4, "airline/2": 0.25}, seed=seed)
    assert furthest(weighted, 4000) < 5
    learned = PassRateSampler(MIXED, seed=seed)
    observe(learned, [(0, [0.0] * 16), (1, [1.0] * 16), (2, [1.0, 0.0])])
    assert furthest(learned, 4000) < 5


# Weighted ------------------------------------------------------------------------------------------------------------


def test_weights_of_domains_are_shares_and_those_of_tasks_hold_within_their_domain():
    chances = WeightedSampler(MIXED, {"retail": 3, "retail/0": 6, "airline/1": 0}).probabilities
    named = {name_of(task): chance for task, chance in chances.items()}
    assert named["retail/0"] == pytest.approx(0.75 * 0.6)
    assert named["retail/1"] == pytest.approx(0.75 * 0.1)
    assert named["airline/1"] == 0
    assert named["airline/0"] == pytest.approx(0.25 / 2)


def test_new_weights_hold_from_the_next_draw_and_take_the_place_of_the_old_ones():
    sampler = WeightedSampler(MIXED, {"airline": 0})
    assert {task.domain for task in drawn(sampler, 30)} == {"retail"}
    sampler.set_weights({"retail": 0})
    assert {task.domain for task in drawn(sampler, 30)} == {"airline"}


def test_a_weight_of_zero_means_never():
    sampler = WeightedSampler(MIXED, {f"retail/{n}": 0 for n in range(4)} | {"airline": 0})
    assert {name_of(task) for task in drawn(sampler, 50)} == {"retail/4"}


@given(st.dictionaries(st.sampled_from([name_of(task) for task in MIXED.whole]), st.floats(1e-300, 1e9)))
@settings(max_examples=40)
def test_weights_of_any_size_make_probabilities(weights):
    chances = WeightedSampler(MIXED, weights).probabilities
    assert math.fsum(chances.values()) == pytest.approx(1)
    assert all(0 <= chance <= 1 for chance in chances.values())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"retail/9": 1}, r"no domain or task 'retail/9'.*Name a domain \(retail, airline\).*retail/0"),
        ({"0": 1, "telecom": 2}, r"'0', 'telecom'.*domain/id"),
        ({"retail": -1}, r"weight of retail is -1\..*from 0 to 1e\+09"),
        ({"retail": math.nan}, r"weight of retail is nan"),
        ({"retail": math.inf}, r"weight of retail is inf"),
        ({"retail": True}, r"weight of retail is True"),
        ({"retail": "2"}, r"weight of retail is '2'"),
        ({7: 1.0}, r"7 is no name"),
        ({"retail": 0, "airline": 0}, r"every domain has weight 0.*above 0"),
        ({f"airline/{n}": 0 for n in range(3)}, r"every task of airline has weight 0.*\{'airline': 0\}"),
        ([1.0], r"task_weights is \[1.0\]"),
    ],
)
def test_weights_that_mean_nothing_are_refused_and_the_earlier_ones_stay(weights: Any, message: str):
    sampler = WeightedSampler(MIXED, {"airline": 0})
    with pytest.raises(TaskError, match=message):
        sampler.set_weights(weights)
    assert {task.domain for task in drawn(sampler, 30)} == {"retail"}


# Pass rate -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "bucket"),
    [
        ([], "new"),
        ([[None, None]], "new"),
        ([[0.0] * 8], "never"),
        ([[1.0] * 8], "always"),
        ([[1.0] + [0.0] * 7], "hard"),
        ([[1.0, 0.0]], "medium"),
        ([[1.0] * 7 + [0.0]], "easy"),
        ([[0.0] * 16] * 20 + [[1.0, 1.0] + [0.0] * 6] * 2, "hard"),
    ],
)
def test_a_task_is_in_the_bucket_of_its_recent_rewards(groups, bucket):
    estimate = Estimate()
    for rewards in groups:
        estimate = estimate.after(rewards, 16.0)
    assert estimate.bucket == bucket


def test_tasks_that_are_solved_always_or_never_are_drawn_rarely_and_count_again_when_that_changes():
    sampler = PassRateSampler(pool(retail=4), floor=0.1)
    never, always, *_ = sampler.whole
    sampler.observe(never, [0.0] * 8)
    sampler.observe(always, [1.0] * 8)
    assert sampler.buckets == {"new": 2, "never": 1, "hard": 0, "medium": 0, "easy": 0, "always": 1}
    assert sampler.probabilities[never] == sampler.probabilities[always] == pytest.approx(0.1 / 2.2)
    sampler.observe(never, [1.0, 1.0, 1.0] + [0.0] * 5)
    assert sampler.probabilities[never] == pytest.approx(1 / 3.1)


@given(GROUPS, GROUPS, st.integers(0, 5))
@settings(max_examples=40)
def test_episodes_without_a_reward_say_nothing(before, rewards, faults):
    known = Estimate().after(before, 16.0)
    assert known.after([*rewards, *[None] * faults], 16.0) == known.after(rewards, 16.0)
    assert known.after([None, math.nan], 16.0) == known


def test_an_estimate_follows_a_policy_that_improves():
    estimate = Estimate()
    rates = []
    for passes in itertools.chain([0] * 10, [4] * 6, [8] * 6):
        estimate = estimate.after([1.0] * passes + [0.0] * (8 - passes), 16.0)
        rates.append(estimate.rate)
    assert rates[9] < 0.06
    assert 0.4 < rates[15] < 0.5
    assert rates[21] > 0.9


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("drawn", "is 'drawn', not the state of a sampler"),
        ({"drawn": 3}, "not the state of a sampler"),
        ({"sampler": "uniform", "drawn": 3}, "that of sampler 'uniform', not of pass_rate.*sampler_state"),
        ({"sampler": "pass_rate", "drawn": -1, "tasks": {}}, "drawn in sampler_state is -1"),
        ({"sampler": "pass_rate", "drawn": 1}, "tasks in sampler_state is None"),
        ({"sampler": "pass_rate", "drawn": 1, "tasks": {"retail/0": 3}}, "has 3 for 'retail/0'"),
        ({"sampler": "pass_rate", "drawn": 1, "tasks": {"retail/0": [-1, 2]}}, "'retail/0' in sampler_state is -1"),
    ],
)
def test_a_state_of_something_else_is_refused(state: Any, message: str):
    with pytest.raises(TaskError, match=message):
        PassRateSampler(MIXED).restore(state)


def test_what_a_state_knows_of_tasks_that_are_not_there_is_left_aside():
    sampler = PassRateSampler(MIXED)
    sampler.restore({"sampler": "pass_rate", "drawn": 2, "tasks": {"retail/0": [0, 9], "telecom/1": [3, 3]}})
    assert sampler.state()["tasks"] == {"retail/0": [0.0, 9.0]}
