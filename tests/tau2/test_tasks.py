"""Task selection: what exists, and what is refused."""

from __future__ import annotations

import pytest

from rollout_service.errors import TaskError
from rollout_service.tau2 import tasks


@pytest.mark.parametrize(
    ("domain", "split", "count"),
    [
        ("mock", "base", 9),
        ("airline", "base", 50),
        ("airline", "train", 30),
        ("airline", "test", 20),
        ("retail", "base", 114),
        ("telecom", "base", 114),
        ("telecom", "small", 20),
        ("telecom-workflow", "test", 40),
    ],
)
def test_the_official_splits_have_their_official_sizes(domain, split, count):
    references = tasks.references(domain, split)
    assert len(references) == count == len({r.task_id for r in references})
    assert [r.index for r in references] == list(range(count))


def test_an_unknown_domain_is_refused_with_the_known_ones():
    with pytest.raises(TaskError, match=r"'retial'.*mock, airline, retail, telecom"):
        tasks.references("retial")


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(TaskError, match=r"'dev'.*base, test, train"):
        tasks.references("retail", "dev")


def test_unknown_task_ids_are_refused_with_valid_ones():
    with pytest.raises(TaskError, match=r"'999999'.*Valid: 0, 1, 2"):
        tasks.references("retail", "base", ["0", "999999"])


def test_chosen_ids_keep_the_order_they_were_given_in():
    chosen = tasks.references("retail", "base", ["7", "3"])
    assert [(r.task_id, r.index) for r in chosen] == [("7", 7), ("3", 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "mock", "ids": "create_task_1"}, "tasks.ids is 'create_task_1', not a list"),
        ({"domain": {"mock": 1, "airline": 1}, "ids": ["0"]}, "goes with one domain"),
        ({"domain": {"mock": -1}}, "weight of mock is -1"),
        ({"domain": "mock", "split": ["base"]}, "tasks.split is"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(arguments, message):
    with pytest.raises(TaskError, match=message):
        tasks.pool(**arguments)


def test_episode_seeds_differ_by_draw_and_sample_and_do_not_change_between_versions():
    task = tasks.references("retail")[0]
    seeds = {tasks.episode_seed(0, task, draw, sample) for draw in range(20) for sample in range(20)}
    assert len(seeds) == 400
    assert tasks.episode_seed(0, task, 0, 0) == 1154290198
