"""The checker finds each kind of violation that is planted, and nothing where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos import history
from tests.chaos.checker import SIGNIFICANCE, check, same_distribution
from tests.chaos.history import Delivery

few = settings(max_examples=30)


@st.composite
def calm_runs(draw: st.DrawFn) -> list[Delivery]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    places = range(2 * draw(st.integers(2, 40)))
    return [delivery(p, reward=float(rng.integers(2)), tokens=int(rng.integers(500, 9000))) for p in places]


def delivery(place: int, **fields: object) -> Delivery:
    known = {
        "collection": "c",
        "group": place // 2,
        "sample": place % 2,
        "domain": "retail",
        "task": str(place // 2),
        "seed": 1000 + place,
        "attempt": 1,
        "outcome": "completed",
        "reward": 1.0,
        "turns": 5,
        "tokens": 900,
        "at": float(place),
    }
    return Delivery(**known | fields)  # type: ignore[arg-type]


def kinds(calm: list[Delivery], came: list[Delivery]) -> set[str]:
    return {violation.kind for violation in check(calm, came).violations}


@few
@given(calm=calm_runs(), data=st.data())
def test_the_calm_run_s_episodes_in_any_order_and_attempt_and_collection_are_no_violation(calm, data):
    rng = data.draw(st.randoms(use_true_random=False))
    came = [replace(d, attempt=rng.randint(1, 3), collection="other", at=0.0) for d in calm]
    rng.shuffle(came)
    verdict = check(calm, came)
    assert verdict.violations == ()
    assert (verdict.delivered, verdict.reported, verdict.probability) == (len(calm), 0, 1.0)


@few
@given(calm=calm_runs(), data=st.data())
def test_a_lost_episode_is_found(calm, data):
    lost = data.draw(st.integers(0, len(calm) - 1))
    (found,) = [v for v in check(calm, calm[:lost] + calm[lost + 1 :]).violations if v.kind == "lost"]
    assert str(calm[lost].identity) in found.text


@few
@given(calm=calm_runs(), data=st.data())
def test_an_episode_that_comes_twice_is_found_whatever_it_is_the_second_time(calm, data):
    twice = data.draw(st.sampled_from(calm))
    again = data.draw(st.sampled_from([twice, replace(twice, outcome="aborted", reward=None, attempt=3)]))
    verdict = check(calm, [*calm, again])
    assert verdict.count("twice") == 1
    assert verdict.delivered == len(calm)


@few
@given(calm=calm_runs(), data=st.data())
def test_a_reward_that_is_not_the_calm_run_s_is_found(calm, data):
    place = data.draw(st.integers(0, len(calm) - 1))
    other = data.draw(st.sampled_from([0.0, 0.5, 1.0, None]).filter(lambda reward: reward != calm[place].reward))
    assert kinds(calm, [*calm[:place], replace(calm[place], reward=other), *calm[place + 1 :]]) == {"reward"}


@few
@given(calm=calm_runs(), data=st.data())
def test_a_conversation_of_another_length_is_found(calm, data):
    place, field = data.draw(st.integers(0, len(calm) - 1)), data.draw(st.sampled_from(["turns", "tokens"]))
    other = replace(calm[place], **{field: getattr(calm[place], field) + 1})
    assert "length" in kinds(calm, [*calm[:place], other, *calm[place + 1 :]])


@few
@given(calm=calm_runs(), data=st.data())
def test_an_episode_that_nobody_asked_for_is_found(calm, data):
    place = data.draw(st.integers(0, len(calm) - 1))
    change = data.draw(st.sampled_from([{"seed": 7}, {"task": "another"}, {"group": 999}, {"domain": "airline"}]))
    assert {"lost", "unasked"} <= kinds(calm, [*calm[:place], replace(calm[place], **change), *calm[place + 1 :]])


@few
@given(calm=calm_runs(), data=st.data())
def test_an_episode_of_another_collection_is_found(calm, data):
    place = data.draw(st.integers(1, len(calm) - 1))
    came = [*calm[:place], replace(calm[place], collection="another"), *calm[place + 1 :]]
    assert kinds(calm, came) == {"unasked"}


@few
@given(calm=calm_runs(), data=st.data())
def test_a_failure_that_is_reported_once_is_counted_and_is_no_violation(calm, data):
    place = data.draw(st.integers(0, len(calm) - 1))
    failure = replace(calm[place], outcome="aborted", reward=None, attempt=3, turns=0, tokens=0, fault="service")
    verdict = check(calm, [*calm[:place], failure, *calm[place + 1 :]])
    assert verdict.violations == ()
    assert (verdict.delivered, verdict.reported) == (len(calm) - 1, 1)


@few
@given(seed=st.integers(0, 2**32 - 1), keep=st.floats(0.3, 0.6))
def test_giving_up_the_long_episodes_is_found_and_giving_up_any_is_not(seed, keep):
    rng = np.random.default_rng(seed)
    calm = [delivery(place, tokens=int(tokens)) for place, tokens in enumerate(rng.lognormal(7.5, 0.6, 400))]
    limit = np.quantile([d.tokens for d in calm], keep)
    gone = {"outcome": "aborted", "reward": None, "tokens": 0}
    assert "biased" in kinds(calm, [d if d.tokens <= limit else replace(d, **gone) for d in calm])
    whichever = set(rng.permutation(len(calm))[: round(keep * len(calm))].tolist())
    assert kinds(calm, [d if place in whichever else replace(d, **gone) for place, d in enumerate(calm)]) == set()


def test_nothing_that_came_is_no_distribution():
    calm = [delivery(place) for place in range(4)]
    assert {"lost", "biased"} == kinds(calm, [])


@pytest.mark.parametrize("calm", [[delivery(0), delivery(0)], [delivery(0, outcome="aborted", reward=None)]])
def test_a_run_that_is_not_calm_is_no_measure(calm):
    with pytest.raises(ValueError, match="nothing can be compared"):
        check(calm, calm)


def test_the_probability_is_that_of_the_table_of_kolmogorov():
    # At the distance c·sqrt((n+m)/(n·m)) the probability is 0.05 for c = 1.358 and 0.001 for c = 1.949.
    n = 100_000
    for c, probability in ((1.358, 0.05), (1.628, 0.01), (1.949, 0.001)):
        shift = round(c * np.sqrt(2 / n) * n)
        assert same_distribution(np.arange(n), np.arange(n) + shift) == pytest.approx(probability, rel=0.02)
    assert same_distribution(np.arange(50), np.arange(50)) == 1.0
    assert same_distribution(np.arange(50), np.arange(50) + 50) < SIGNIFICANCE


def test_a_torn_last_line_is_left_out_and_taken_off(tmp_path):
    from tests.support.episodes import run

    path, trajectory = tmp_path / "deliveries.jsonl", run("mock")
    trajectory.group_id = "c-00003"
    history.append(path, [trajectory, trajectory])
    whole = path.read_bytes()
    for cut in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:cut])
        assert len(history.read(path)) == 1
        history.repair(path)
        assert path.read_bytes() == whole[: len(whole) // 2]
    history.append(path, [trajectory])
    first, second = history.read(path)
    assert first.identity == second.identity == history.Identity(3, 0, "mock", trajectory.task.task_id, 0)
    assert (first.reward, first.turns, first.fault, first.reported) == (1.0, len(trajectory.turns), "", False)
    assert history.read(tmp_path / "none") == []
