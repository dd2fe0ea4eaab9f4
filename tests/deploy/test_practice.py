"""Practice tasks can be done, with what was said and read alone, and keep away from the test split."""

from __future__ import annotations

import json
import re

import pytest

from deploy.examples import lookups, practice, retail
from rollout_service.tau2 import domain
from rollout_service.tau2.tasks import references
from tests.support import episodes

PLAYED = 40


@pytest.fixture(scope="module")
def made():
    return practice.made_up(400, seed=3)


@pytest.fixture(scope="module")
def many():
    return practice.made_up(5000, seed=21)


def asked(task):
    return task["user_scenario"]["instructions"]["reason_for_call"]


def calls_of(task):
    return [(each["name"], each["arguments"]) for each in task["evaluation_criteria"]["actions"]]


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
    calls = [[call for call in calls_of(task) if not call[0].startswith(lookups.READING)] for task in made]
    assert {name for task in calls for name, _ in task} == {
        *("cancel_pending_order", "return_delivered_order_items", "exchange_delivered_order_items"),
        *("modify_pending_order_items", "modify_pending_order_address", "modify_user_address"),
    }
    for task in calls:
        written = [arguments.get("order_id", arguments.get("user_id")) for _, arguments in task]
        assert len({*written}) == len(written) > 0


def test_all_of_the_users_orders_are_read_before_all_pending_ones_are_cancelled(many):
    database = domain.get("retail").original().tools.db
    found = [task for task in many if "all your pending orders" in asked(task)]
    assert len(found) > 10
    for task in found:
        named = {"get_order_details": [], "cancel_pending_order": []}
        for name, arguments in calls_of(task):
            named[name].append(arguments["order_id"])
        read, cancelled = named.values()
        assert read == database.users[database.orders[read[0]].user_id].orders
        assert cancelled == [order for order in read if database.orders[order].status == "pending"]


def test_a_gift_card_pays_for_all_wishes_that_it_is_to_pay_for(many):
    database = domain.get("retail").original().tools.db
    paid_by_card = 0
    for task in many:
        left = {}
        for _, arguments in calls_of(task):
            if "new_item_ids" not in arguments or not arguments["payment_method_id"].startswith("gift_card"):
                continue
            order, card = database.orders[arguments["order_id"]], arguments["payment_method_id"]
            old = {item.item_id: item for item in order.items}
            pairs = zip(arguments["item_ids"], arguments["new_item_ids"], strict=True)
            price = sum(
                database.products[old[item].product_id].variants[new].price - old[item].price for item, new in pairs
            )
            balance = database.users[order.user_id].payment_methods[card].balance
            left[card] = left.get(card, balance) - max(price, 0.0)
            assert left[card] >= 0, asked(task)
            paid_by_card += 1
    assert paid_by_card > 100


def test_no_order_goes_to_the_profiles_address_where_that_changes(many):
    changed = [task for task in many if "modify_user_address" in dict(calls_of(task))]
    assert len(changed) > 100
    assert not any("the address in your profile" in asked(task) for task in changed)


def test_wishes_are_sentences_that_name_no_item_twice_in_a_row(many):
    begun = re.compile(r"((Also, |And )?[Yy]ou(r|'d)?|((Also, |And )f|F)or order) ")
    for task in many:
        assert all(begun.match(sentence) for sentence in re.split(r"(?<=\.) (?=[A-Z])", asked(task))), asked(task)
        assert not re.search(r"(the [\w -]+) \1\b", asked(task), re.IGNORECASE)


def test_a_seed_always_makes_the_same_tasks_and_another_makes_others(made):
    assert practice.made_up(20, seed=3) == made[:20]
    assert practice.made_up(20, seed=4) != made[:20]
