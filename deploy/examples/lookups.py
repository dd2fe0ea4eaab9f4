"""Look-ups: retail's tasks with gold actions that read every id before they name it.

Invariant: a task's gold actions do the same to the database. Only calls that read are added, moved to the front or,
where one is made twice, left out.

The gold actions of many tasks write to orders and items that nobody has named. A policy that looks for the user, then
for the orders, then for the products can do the same tasks, and imitating it teaches one way for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rollout_service.tau2 import domain, tasks

READING = ("find_", "get_", "list_")
"""What the names of calls that change nothing begin with."""

Call = tuple[str, dict[str, Any]]


def of_split(split: str) -> list[dict[str, Any]]:
    """Retail's own tasks, as τ² writes them."""
    return [tasks.get(reference).model_dump(mode="json") for reference in tasks.references("retail", split)]


def write(path: Path, given_tasks: Iterable[dict[str, Any]]) -> Path:
    """Write tasks of retail with look-ups, for `tasks.path`. Returns the path."""
    tools = domain.get("retail").original().tools
    rewritten = []
    for task in given_tasks:
        told = json.dumps(task["user_scenario"])
        criteria = task["evaluation_criteria"]
        given = [(action["name"], action["arguments"]) for action in criteria["actions"] or []]
        calls = [
            {"action_id": f"{task['id']}_{place}", "name": name, "arguments": arguments}
            for place, (name, arguments) in enumerate(_looked_up(given, told, tools.db))
        ]
        rewritten.append({**task, "evaluation_criteria": {**criteria, "actions": calls}})
    path.write_text(json.dumps(rewritten, indent=1))
    return path


def _looked_up(given: list[Call], told: str, database: Any) -> list[Call]:
    """The calls, with look-ups before them, and none of these twice."""
    calls: list[Call] = []
    for call in [*_lookups(given, told, database), *given]:
        if call not in calls or not call[0].startswith(READING):
            calls.append(call)
    return calls


def _lookups(given: list[Call], told: str, database: Any) -> Iterator[Call]:
    """The calls that read what the given ones name: the user, its orders up to those that are meant, and the products
    of the items that get another variant."""
    user = _user(given, database)
    if user is None:
        return
    found = [call for call in given if call[0].startswith("find_")]
    yield from found or _identified(user, told)
    yield "get_user_details", {"user_id": user.user_id}
    named = [arguments for _, arguments in given if arguments.get("order_id") in user.orders]
    missing = {arguments["order_id"] for arguments in named}
    for order in user.orders:
        if order in missing or (missing and not all(each in told for each in missing)):
            yield "get_order_details", {"order_id": order}
            missing.discard(order)
    for arguments in named:
        products = {item.item_id: item.product_id for item in database.orders[arguments["order_id"]].items}
        changed = arguments["item_ids"] if "new_item_ids" in arguments else []
        yield from (("get_product_details", {"product_id": products[item]}) for item in changed if item in products)


def _user(given: list[Call], database: Any) -> Any:
    """The user that the calls are about; None: they name none."""
    for _, arguments in given:
        if (order := database.orders.get(arguments.get("order_id"))) is not None:
            return database.users[order.user_id]
        if (user := database.users.get(arguments.get("user_id"))) is not None:
            return user
    return None


def _identified(user: Any, told: str) -> Iterator[Call]:
    """The call that finds the user by what is told."""
    if user.email in told:
        yield "find_user_id_by_email", {"email": user.email}
    elif user.address.zip in re.findall(r"\d{5}", told):
        name = {"first_name": user.name.first_name, "last_name": user.name.last_name}
        yield "find_user_id_by_name_zip", {**name, "zip": user.address.zip}
