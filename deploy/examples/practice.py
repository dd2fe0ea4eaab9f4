"""Practice: retail tasks made up from the domain's own users, orders and products, for demonstrations.

Invariant: the user's words and what the tools read decide every argument of the calls. No user of the test split is in
them, and no order is written to twice.

The train split has 74 tasks. A small model learns so few by heart, and not how to read a request. A practice task asks
in plain sentences for what retail's tools can do.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from deploy.examples import lookups
from rollout_service.tau2 import domain

Call = tuple[str, dict[str, Any]]
Wish = tuple[str, list[Call]]
"""What the user says, and the calls that do it."""

MOST_WISHES = 3
STREETS = ("Oak Street", "Lake Avenue", "Hill Road", "Cedar Lane", "Park Drive", "Maple Drive", "Elm Avenue")
CITIES = (("Austin", "TX"), ("Seattle", "WA"), ("Boston", "MA"), ("Denver", "CO"), ("Chicago", "IL"), ("Miami", "FL"))
CANCELLING = (
    ("no longer needed", "You want to cancel {order} because you no longer need {it}."),
    ("no longer needed", "You no longer need {order} and want to cancel {it}."),
    ("no longer needed", "Your plans have changed: you don't need {order} any more, so cancel {it}."),
    ("ordered by mistake", "You want to cancel {order} because you ordered {it} by mistake."),
    ("ordered by mistake", "You made {order} by mistake and want to cancel {it}."),
)
RETURNING = (
    "You want to return {}{}.",
    "You'd like to send back {}{}.",
    "You changed your mind and want to return {}{}.",
)
SENDING = (
    "You want {} to be sent to {}.",
    "You want to change the address of {} to {}.",
    "You have moved, so {} should go to {}.",
)
INTRODUCING = (
    "You are {name} in zip code {zip}.",
    "You are {name}, and you live in {city}, {state}, {zip}.",
    "You are {name} from {city} {zip}.",
    "You are {user_id} living in {city}, {zip}.",
    "Your name is {name} and your zip code is {zip}.",
    "You name is {name} and your zip code is {zip}.",
    "Your name is {name} and your email is {email}.",
    "You name is {name} and your email is {email}.",
    "You are {user_id} with email {email}.",
)
"""The slip is in many of retail's own scenarios."""


def made_up(number: int, seed: int) -> list[dict[str, Any]]:
    """So many tasks, as τ² writes them, with ids from `practice_0`. Their gold actions are the calls that write,
    after those that read all orders where all pending ones are meant."""
    database = domain.get("retail").original().tools.db
    rng = random.Random(seed)
    users = [*_not_tested(database)]
    made: list[dict[str, Any]] = []
    while len(made) < number:
        customer = Customer(rng.choice(users), database, rng)
        if wishes := customer.wishes():
            made.append(_task(f"practice_{len(made)}", customer.introduction(), wishes, rng))
    return made


def _not_tested(database: Any) -> Iterator[Any]:
    """The users that no test task is about, and whose name no such user has."""
    tested = json.dumps(lookups.of_split("test"))
    users = database.users.values()
    names = set()
    for user in users:
        if any(each in tested for each in (user.user_id, user.email, _full_name(user), *user.orders)):
            names.add(_full_name(user))
    yield from (user for user in users if _full_name(user) not in names)


def _full_name(user: Any) -> str:
    return f"{user.name.first_name} {user.name.last_name}"


def _task(task_id: str, introduction: str, wishes: Sequence[Wish], rng: random.Random) -> dict[str, Any]:
    first, *more = (text for text, _ in wishes)
    said = [first, *(_further(text, rng) for text in more)]
    told = {"domain": "retail", "reason_for_call": " ".join(said), "known_info": introduction, "task_instructions": "."}
    given = [call for _, calls in wishes for call in calls]
    calls = [
        {"action_id": f"{task_id}_{place}", "name": name, "arguments": arguments}
        for place, (name, arguments) in enumerate(given)
    ]
    criteria = {"actions": calls, "reward_basis": ["DB"]}
    return {"id": task_id, "user_scenario": {"instructions": told}, "evaluation_criteria": criteria}


class Customer:
    """A user who wishes something."""

    def __init__(self, user: Any, database: Any, rng: random.Random) -> None:
        self._user = user
        self._orders = [database.orders[each] for each in user.orders]
        self._products = database.products
        self._rng = rng
        self._lower = rng.random() < 0.5
        self._moves = rng.random() < 0.1
        """Whether the profile gets a new address; then no order is sent to the one that it has."""
        self._left = {name: float(getattr(each, "balance", "inf")) for name, each in user.payment_methods.items()}
        """What each payment method can still pay, whichever wish comes first."""

    def introduction(self) -> str:
        """Who the user is, with the zip code or the e-mail address by which retail finds it."""
        home = self._user.address
        where = {"city": home.city, "state": home.state, "zip": home.zip}
        who = {"name": _full_name(self._user), "user_id": self._user.user_id, "email": self._user.email}
        return self._rng.choice(INTRODUCING).format(**who, **where)

    def wishes(self) -> list[Wish]:
        """Wishes for some of the orders, and now and then one for the user's own address. There may be none."""
        kinds: dict[str, list[Callable[[Any], Wish | None]]] = {
            "pending": [self._cancelled, self._other_items, self._sent_elsewhere],
            "delivered": [self._returned, self._other_items],
        }
        orders = [order for order in self._orders if order.status in kinds]
        pending = [order for order in orders if order.status == "pending"]
        if len(pending) > 1 and self._rng.random() < 0.1:
            return [self._all_cancelled(pending)]
        drawn = [self._rng.choice(kinds[order.status])(order) for order in self._rng.sample(orders, len(orders))]
        found = [wish for wish in drawn if wish is not None][: self._rng.randint(1, MOST_WISHES)]
        if self._moves:
            text, address = self._address()
            call = "modify_user_address", {"user_id": self._user.user_id, **address}
            found.append((f"You want your profile's address to be {text}.", [call]))
        return found

    def _all_cancelled(self, pending: Sequence[Any]) -> Wish:
        """All of the user's orders are read: otherwise nobody knows that no other one is pending."""
        reason, text = self._rng.choice(CANCELLING)
        read = [("get_order_details", {"order_id": order.order_id}) for order in self._orders]
        calls = [("cancel_pending_order", {"order_id": order.order_id, "reason": reason}) for order in pending]
        return text.format(order="all your pending orders", it="them"), [*read, *calls]

    def _cancelled(self, order: Any) -> Wish:
        reason, text = self._rng.choice(CANCELLING)
        call = "cancel_pending_order", {"order_id": order.order_id, "reason": reason}
        return text.format(order=self._name(order, order.items), it="it"), [call]

    def _returned(self, order: Any) -> Wish | None:
        if not _differ(order.items):
            return None
        chosen = self._rng.sample(order.items, self._rng.randint(1, len(order.items)))
        kept = [self._spelt(item.name) for item in order.items if item not in chosen]
        whole = self._name(order, chosen)
        said = [_listed([f"the {self._spelt(item.name)}" for item in chosen]) + self._where("from", order, chosen)]
        if not kept:
            said = [f"everything in {whole}", f"all items of {whole}"]
        elif len(kept) == 1:
            said.append(f"everything in {whole} except the {kept[0]}")
        payment, how = self._refund(order)
        arguments = {
            "order_id": order.order_id,
            "item_ids": [item.item_id for item in order.items if item in chosen],
            "payment_method_id": payment,
        }
        text = self._rng.choice(RETURNING).format(self._rng.choice(said), how)
        return text, [("return_delivered_order_items", arguments)]

    def _other_items(self, order: Any) -> Wish | None:
        """Other variants of one or two items. Those that have come are exchanged, others are modified."""
        chosen = self._rng.sample(order.items, min(len(order.items), self._rng.randint(1, 2)))
        wanted = [self._variant(item) for item in chosen]
        paid = self._paid(order, chosen, wanted)
        if not _differ(order.items) or paid is None:
            return None
        payment, how = paid
        said = _listed([f"the {self._spelt(item.name)} {text}" for item, (text, _) in zip(chosen, wanted, strict=True)])
        arguments = {
            "order_id": order.order_id,
            "item_ids": [item.item_id for item in chosen],
            "new_item_ids": [variant.item_id for _, variant in wanted],
            "payment_method_id": payment,
        }
        came = order.status == "delivered"
        what = "exchange" if came else self._rng.choice(["change", "modify"])
        where = self._where("from" if came else "in", order, chosen)
        text = f"You want to {what} {said}{where}{how}."
        if self._rng.random() < 0.3:
            text = f"For order {order.order_id}, you want to {what} {said}{how}."
        call = "exchange_delivered_order_items" if came else "modify_pending_order_items"
        return text, [(call, arguments)]

    def _sent_elsewhere(self, order: Any) -> Wish:
        text, address = self._address()
        if not self._moves and self._user.address != order.address and self._rng.random() < 0.5:
            text, address = "the address in your profile", self._user.address.model_dump()
        call = "modify_pending_order_address", {"order_id": order.order_id, **address}
        return self._rng.choice(SENDING).format(self._name(order, order.items), text), [call]

    def _spelt(self, name: str) -> str:
        return name.lower() if self._lower else name

    def _name(self, order: Any, items: Sequence[Any]) -> str:
        """How the user calls an order: by its id, or by one of these items that no other order has."""
        own = self._only_here(order, items)
        if own and self._rng.random() < 0.6:
            return f"the order with the {self._spelt(self._rng.choice(own))}"
        return f"order {order.order_id}"

    def _where(self, word: str, order: Any, items: Sequence[Any]) -> str:
        """The order that these items are in. The user may leave it out where no other order has them."""
        if len(self._only_here(order, items)) == len(items) and self._rng.random() < 0.5:
            return ""
        return f" {word} {self._name(order, items)}"

    def _only_here(self, order: Any, items: Sequence[Any]) -> list[str]:
        """Names of those of the order's items that none of the user's other orders has."""
        others = {item.name for other in self._orders if other is not order for item in other.items}
        return [item.name for item in items if item.name not in others]

    def _variant(self, item: Any) -> tuple[str, Any]:
        """How the user asks for another variant of an item, and the variant; None: there is none."""
        variants = [each for each in self._products[item.product_id].variants.values() if each.available]
        others = [each for each in variants if each.options != item.options]
        if not others:
            return "", None
        variant = self._rng.choice(others)
        changed = [f"{name} {value}" for name, value in variant.options.items() if value != item.options.get(name)]
        said = [
            f"for one with {_listed(changed)} and all else the same",
            f"to one with {_listed(changed)}, otherwise alike",
        ]
        said.append(f"{item.options} to {variant.options}")
        cheapest = min(variants, key=lambda each: each.price)
        alone = cheapest in others and sum(each.price == cheapest.price for each in variants) == 1
        if alone and self._rng.random() < 0.2:
            return "for the cheapest one that is available", cheapest
        return self._rng.choice(said), variant

    def _paid(self, order: Any, chosen: Sequence[Any], wanted: Sequence[tuple[str, Any]]) -> tuple[str, str] | None:
        """The payment method for a difference in price, and what the user says of it. None: there is no way."""
        if any(variant is None for _, variant in wanted):
            return None
        price = sum(variant.price - item.price for item, (_, variant) in zip(chosen, wanted, strict=True))
        able = [each for each in self._methods() if self._left[each] >= price]
        original = order.payment_history[0].payment_method_id
        if not able:
            return None
        silent = original in able and self._rng.random() < 0.4
        method = original if silent else self._rng.choice(able)
        self._left[method] -= max(price, 0.0)
        return method, "" if silent else f", with {self._methods()[method]} for the difference"

    def _refund(self, order: Any) -> tuple[str, str]:
        """The payment method that gets the money, and what the user says of it."""
        original = order.payment_history[0].payment_method_id
        cards = [method for method in self._methods() if method.startswith("gift_card")]
        if cards and self._rng.random() < 0.4:
            return cards[0], " and have the money on your gift card"
        return original, self._rng.choice(["", " and get the money back as you paid"])

    def _methods(self) -> Mapping[str, str]:
        """The user's payment methods that can be told apart, with what the user calls them."""
        methods = self._user.payment_methods
        kinds = [method.source for method in methods.values()]
        names = {"paypal": "PayPal", "gift_card": "your gift card", "credit_card": "your credit card"}
        return {name: names[method.source] for name, method in methods.items() if kinds.count(method.source) == 1}

    def _address(self) -> tuple[str, dict[str, str]]:
        """A new address, as the user says it and as the tools take it."""
        city, state = self._rng.choice(CITIES)
        house, suite, zip_code = (self._rng.randint(*ends) for ends in ((100, 999), (100, 999), (10000, 99999)))
        street = self._rng.choice(STREETS)
        address = {"address1": f"{house} {street}", "address2": f"Suite {suite}", "city": city, "state": state}
        text = f"{house} {street}, Suite {suite}, {city}, {state}, USA, {zip_code}"
        return text, {**address, "country": "USA", "zip": str(zip_code)}


def _differ(items: Sequence[Any]) -> bool:
    """Whether no two of them have the same name."""
    return len({item.name for item in items}) == len(items)


def _further(text: str, rng: random.Random) -> str:
    """The text as one more wish."""
    small = text[0].lower() + text[1:]
    return rng.choice([f"Also, {small}", text, f"And {small}"])


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
