"""Summaries count what happened and keep nothing of it; estimates agree with their definitions."""

import dataclasses
import itertools
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.errors import ConfigError, Fault, FaultKind
from rollout_service.record.statistics import Summary, pass_hat_k, summarize, wilson_interval
from rollout_service.record.trajectory import Outcome, TaskRef, Timing, UserUsage
from tests.support.trajectories import make_segment, make_trajectory


def test_a_summary_counts_everything_once() -> None:
    malformed = make_segment(turns=3)
    malformed.turns[1].tool_calls = ["ok", "invalid_json"]
    malformed.turns[2].cached_tokens = 5
    fault = Fault(FaultKind.USER_SIMULATOR, "Timeout", "no answer", True)
    summary = summarize(
        trajectory
        for trajectory in [
            make_trajectory(reward=1.0, segments=[malformed], timing=Timing(1, 2, 3, 4, 5)),
            make_trajectory(reward=0.0, termination_reason="max_steps", outcome=Outcome.TRUNCATED, timing=Timing(1)),
            make_trajectory(
                reward=None,
                fault=fault,
                outcome=Outcome.ABORTED,
                termination_reason="fault",
                task=TaskRef("telecom", "test", "1", 0),
                segments=[],
                timing=Timing(),
            ),
        ]
    )
    assert summary.episodes == 3
    assert summary.termination_reasons == {"user_stop": 1, "max_steps": 1, "fault": 1}
    assert summary.faults == {"user_simulator": 1}
    assert summary.timing == Timing(2, 2, 3, 4, 5)
    assert (summary.turns, summary.policy_tokens, summary.malformed_calls) == (5, 20, 1)
    # Turns of 4 tokens start at 3, 9 and 15 of their segment.
    assert (summary.prompt_tokens, summary.cached_tokens) == (3 + 9 + 15 + 3 + 9, 5)
    assert summary.user_cost_usd == 0.75
    retail, telecom = summary.domains["retail"], summary.domains["telecom"]
    assert (retail.episodes, retail.scored, retail.mean_reward) == (2, 2, 0.5)
    assert retail.outcomes == {"completed": 1, "truncated": 1}
    assert (telecom.episodes, telecom.scored, telecom.mean_reward, telecom.interval) == (1, 0, None, None)


def test_an_unscored_episode_is_not_a_failed_one() -> None:
    rewards = [1.0, None, None, 0.0, 1.0, 1.0]
    domain = summarize(make_trajectory(reward=reward) for reward in rewards).domains["retail"]
    assert (domain.episodes, domain.scored, domain.mean_reward) == (6, 4, 0.75)
    assert domain.interval == wilson_interval(0.75, 4)


@pytest.mark.parametrize("costs", [(0.5, None, 0.5), (None, 0.5), (0.5, None)])
def test_one_unknown_cost_makes_the_sum_unknown(costs: tuple[float | None, ...]) -> None:
    assert summarize(make_trajectory(user_usage=UserUsage(cost_usd=cost)) for cost in costs).user_cost_usd is None


def test_a_summary_does_not_grow_with_what_it_counts() -> None:
    summary = Summary()
    for n in range(200):
        summary.add(make_trajectory(trajectory_id=f"t{n}"))
        if n == 0:
            first = len(pickle.dumps(summary))
    assert len(pickle.dumps(summary)) < first + 50


@pytest.mark.parametrize(
    ("mean", "count", "low", "high"),
    # 0 and all of 10 have the closed forms z²/(n+z²); 8 of 10 is the textbook case.
    [(0.8, 10, 0.4902, 0.9433), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.5, 100, 0.4038, 0.5962)],
)
def test_wilson_interval_has_its_known_values(mean: float, count: int, low: float, high: float) -> None:
    assert wilson_interval(mean, count) == pytest.approx((low, high), abs=5e-5)


@given(st.floats(0, 1), st.integers(1, 10_000))
@settings(deadline=None)
def test_wilson_interval_holds_the_mean_and_narrows(mean: float, count: int) -> None:
    low, high = wilson_interval(mean, count)
    assert 0.0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1.0
    narrower_low, narrower_high = wilson_interval(mean, 2 * count)
    assert narrower_high - narrower_low < high - low


@pytest.mark.parametrize(("mean", "count"), [(1.5, 3), (-0.1, 3), (float("nan"), 3), (0.5, 0)])
def test_wilson_interval_refuses_what_is_no_mean_of_rewards(mean: float, count: int) -> None:
    with pytest.raises(ValueError, match="mean"):
        wilson_interval(mean, count)


tasks = st.lists(
    st.integers(1, 6).flatmap(lambda trials: st.tuples(st.just(trials), st.integers(0, trials))), min_size=1, max_size=5
)


@given(tasks, st.data())
@settings(max_examples=60, deadline=None)
def test_pass_hat_k_is_the_share_of_subsets_that_succeed_throughout(
    tasks: list[tuple[int, int]], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, min(trials for trials, _ in tasks)))
    shares = []
    for trials, passed in tasks:
        subsets = list(itertools.combinations([True] * passed + [False] * (trials - passed), k))
        shares.append(sum(map(all, subsets)) / len(subsets))
    assert pass_hat_k(tasks, k) == pytest.approx(sum(shares) / len(shares))


def test_pass_hat_k_decides_between_luck_and_reliability() -> None:
    assert pass_hat_k([(4, 2), (4, 2)], 1) == pass_hat_k([(4, 4), (4, 0)], 1) == 0.5
    assert pass_hat_k([(4, 2), (4, 2)], 4) == 0.0
    assert pass_hat_k([(4, 4), (4, 0)], 4) == 0.5


@pytest.mark.parametrize(
    ("successes", "k", "problem"),
    [
        ([(4, 2), (3, 3)], 4, "pass\\^4 needs 4 scored trials of every task; task 1 has 3.*k <= 3"),
        ([(4, 5)], 1, "5 successes in 4 trials"),
        ([(4, -1)], 1, "-1 successes"),
        ([(4, 2)], 0, "k >= 1"),
        ([], 1, "no task"),
    ],
)
def test_pass_hat_k_refuses_what_it_cannot_estimate(successes: list[tuple[int, int]], k: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        pass_hat_k(successes, k)


def test_a_summary_as_json_has_every_number_that_it_counts():
    summary = summarize([make_trajectory(reward=1.0)])
    said = json.loads(json.dumps(summary.to_dict()))
    assert {item.name for item in dataclasses.fields(summary)} - {"fault_texts"} <= said.keys()
    assert (said["episodes"], said["scored"], said["domains"]["retail"]["mean_reward"]) == (1, 1, 1.0)
    assert said["timing"].keys() == {item.name for item in dataclasses.fields(summary.timing)}


def test_flaws_of_the_user_are_rates_with_intervals_in_all_and_by_task() -> None:
    flaws = [{"premature_stop": [3]}, {}, {"premature_stop": [1], "empty_answer": [2]}, None]
    tasks = [TaskRef("retail", "train", name, 0) for name in ("1", "1", "2", "2")]
    numbers = summarize(
        make_trajectory(user_flaws=found, task=task) for found, task in zip(flaws, tasks, strict=True)
    ).to_dict()
    total = numbers["user_flaws"]
    assert total["episodes"] == 3, "nobody looked at the last one"
    assert {name: flaw["episodes"] for name, flaw in total["flaws"].items()} == {
        "any": 2,
        "premature_stop": 2,
        "empty_answer": 1,
    }
    assert total["flaws"]["any"]["interval"] == list(wilson_interval(2 / 3, 3))
    assert [counts["episodes"] for counts in numbers["user_flaws_by_task"].values()] == [2, 1]
