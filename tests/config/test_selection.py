"""What chooses tasks: domains, mixes and ids, and how a mix takes turns."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.config.selection import Rotation, read_domain, read_ids
from rollout_service.errors import TaskError

weights = st.floats(0.01, 100) | st.integers(1, 50)


@given(
    st.dictionaries(st.sampled_from(["mock", "airline", "retail", "telecom", "telecom-workflow"]), weights, min_size=1),
    st.integers(0, 2**32),
    st.integers(1, 60),
)
def test_after_any_number_of_draws_each_domain_has_its_share_rounded_up_or_down(mix, seed, draws):
    drawn = Counter(itertools.islice(Rotation(mix, seed), draws))
    for name, weight in mix.items():
        share = draws * weight / sum(mix.values())
        assert math.floor(share - 1e-9) <= drawn[name] <= math.ceil(share + 1e-9)


def test_four_groups_over_four_domains_of_one_weight_are_one_each():
    mix = {"mock": 1, "airline": 1, "retail": 1, "telecom": 1}
    orders = {tuple(itertools.islice(Rotation(mix, seed), 4)) for seed in range(20)}
    assert all(sorted(order) == sorted(mix) for order in orders)
    assert len(orders) > 1, "the seed decides whose turn comes first"


def test_a_domain_is_a_name_a_mix_or_a_mix_as_text():
    assert read_domain("retail", "domain") == "retail"
    assert read_domain({"retail": 2, "mock": 0.5}, "domain") == {"retail": 2.0, "mock": 0.5}
    assert read_domain("retail=2, airline=1", "domain") == {"retail": 2.0, "airline": 1.0}


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "retail=2,airline",
        "retail,airline",
        "retail=2,retail=1",
        "retail=two",
        "retail=0",
        "retail=-1",
        "retail=nan",
        "retail=inf",
        {},
        {"retail": 0},
        {"retail": -1.0},
        {"retail": float("nan")},
        {"retail": float("inf")},
        {"retail": True},
        {"retail": 10**400},
        {"retail": "2"},
        {1: 1},
        ["retail"],
        3,
        None,
    ],
)
def test_what_is_no_domain_and_no_mix_is_refused_by_field_with_an_example(given):
    with pytest.raises(TaskError, match=r"^domain") as caught:
        read_domain(given, "domain")
    assert caught.value.remedy


def test_ids_are_a_list_of_texts_or_whole_numbers():
    assert read_ids(["a", 7], "ids") == ["a", "7"]
    assert read_ids(("a",), "ids") == ["a"]


@pytest.mark.parametrize("given", ["create_task_1", b"x", [], 5, None, [True], [1.5], [None], {"a": 1}])
def test_what_is_no_list_of_ids_is_refused(given):
    with pytest.raises(TaskError, match=r"^ids") as caught:
        read_ids(given, "ids")
    assert caught.value.remedy
