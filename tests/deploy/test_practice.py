"""Practice tasks can be done, with what was said and read alone, and keep away from the test split."""

from __future__ import annotations

import json

import pytest

from deploy.examples import lookups, practice, retail
from rollout_service.tau2 import domain
from rollout_service.tau2.tasks import references
from tests.support import episodes

PLAYED = 40


@pytest.fixture(scope="module")
def made():
    return practice.made_up(400, seed=3)


def test_each_is_solved_without_a_guess_or_an_error(made, tmp_path):
    path = str(lookups.write(tmp_path / "tasks.json", made[:PLAYED]))
    script = {"user__script": {"own_words": True}, "policy__script": retail.SCRIPT | {"malformed_call": 0.0}}
    runner = episodes.runner(episodes.settings(tasks__path=path, tasks__domain="retail", **script))
    for reference in references("retail", path):
        played = runner.run(episodes.request(reference))
        assert played.reward == 1.0, played.messages
        assert retail.grounded(played), played.messages
        assert not any(message.get("error") for message in played.messages), played.messages


def test_no_name_order_or_address_of_the_test_split_is_in_them(made):
    database = domain.get("retail").original().tools.db
    tested = json.dumps(lookups.of_split("test"))
    text = json.dumps(made)
    people = [user for user in database.users.values() if user.user_id in tested or user.email in tested]
    people += [database.users[order.user_id] for name, order in database.orders.items() if name in tested]
    assert len(people) > 20
    for user in people:
        for name in user.user_id, user.email, f"{user.name.first_name} {user.name.last_name}", *user.orders:
            assert name not in text


def test_every_call_that_writes_is_among_them_and_no_order_is_written_to_twice(made):
    calls = [[(each["name"], each["arguments"]) for each in task["evaluation_criteria"]["actions"]] for task in made]
    assert {name for task in calls for name, _ in task} == {
        *("cancel_pending_order", "return_delivered_order_items", "exchange_delivered_order_items"),
        *("modify_pending_order_items", "modify_pending_order_address", "modify_user_address"),
    }
    for task in calls:
        written = [arguments.get("order_id", arguments.get("user_id")) for _, arguments in task]
        assert len({*written}) == len(written) > 0


def test_a_seed_always_makes_the_same_tasks_and_another_makes_others(made):
    assert practice.made_up(20, seed=3) == made[:20]
    assert practice.made_up(20, seed=4) != made[:20]
