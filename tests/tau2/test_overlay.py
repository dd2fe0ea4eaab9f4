"""An overlay behaves as a plain copy of what it is a view of, and nothing done to it is seen anywhere else."""

from __future__ import annotations

import contextlib
import copy
import json
import operator
import pickle
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, PrivateAttr, TypeAdapter

from rollout_service.errors import SharedWriteError
from rollout_service.tau2.overlay import OverlayDict, freeze, is_unchanged, overlay

ANYTHING = TypeAdapter(Any)


class Status(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


class Name(BaseModel):
    first: str
    known_as: list[str] = []


class Card(BaseModel):
    kind: Literal["card"] = "card"
    limits: dict[str, float]


class Gift(BaseModel):
    kind: Literal["gift"] = "gift"
    balance: float


class User(BaseModel):
    name: Name
    status: Status = Status.OPEN
    since: date | None = None
    methods: dict[str, Card | Gift] = {}
    orders: list[str] = []


class Shop(BaseModel):
    users: dict[str, User]
    staff: list[Name]
    stock: dict[str, int]
    by_status: dict[Status, list[str]]
    notes: dict[str, Any]
    owner: User | None


def user(first: str) -> User:
    name, methods = (
        Name(first=first, known_as=["x", "y"]),
        {"a": Card(limits={"a": 1.5, "b": 2.0}), "b": Gift(balance=3)},
    )
    return User(name=name, since=date(2024, 5, 15), methods=methods, orders=["2", "1"])


def shop() -> Shop:
    return Shop(
        users={"a": user("Ann"), "b": user("Bob"), "c": user("Cid")},
        staff=[Name(first="Dan"), Name(first="Eva", known_as=["z"])],
        stock={"a": 1, "b": 2},
        by_status={Status.OPEN: ["a", "b"], Status.CLOSED: []},
        notes={"a": {"b": [1, {"c": 2}]}, "b": [[3], []], "c": None},
        owner=user("Fay"),
    )


def text(model: BaseModel) -> str:
    """Tells 1 from True and one order of keys from another."""
    return repr([model.model_dump(warnings=False), model.model_dump(warnings=False, exclude_unset=True)])


def json_text(model: BaseModel) -> str:
    return json.dumps(model.model_dump(warnings=False), sort_keys=True, default=str)


# As plain copies ------------------------------------------------------------------------------------------------------

NEW: dict[str, Callable[[], Any]] = {
    "int": lambda: 7,
    "none": lambda: None,
    "list": lambda: ["n"],
    "dict": lambda: {"a": {"b": [1]}, "b": 2},
    "gift": lambda: Gift(balance=9.0),
    "name": lambda: Name(first="New", known_as=["n"]),
    "user": lambda: user("Gil"),
}

Action = Callable[[Any, Any, Callable[[], Any]], Any]

DICT_ACTIONS: dict[str, Action] = {
    "set": lambda d, key, new: operator.setitem(d, key, new()),
    "delete": lambda d, key, new: operator.delitem(d, key),
    "pop": lambda d, key, new: d.pop(key),
    "pop or": lambda d, key, new: d.pop(key, new()),
    "popitem": lambda d, key, new: d.popitem(),
    "setdefault": lambda d, key, new: d.setdefault(key, new()),
    "update": lambda d, key, new: d.update({key: new()}, z=new()),
    "update by pairs": lambda d, key, new: d.update([(key, new())]),
    "|=": lambda d, key, new: operator.ior(d, {key: new()}),
    "|": lambda d, key, new: [d | {key: new()}, {key: new()} | d],
    "clear": lambda d, key, new: d.clear(),
    "get": lambda d, key, new: d.get(key),
    "get or": lambda d, key, new: d.get(key, new()),
    "in": lambda d, key, new: [key in d, len(d), bool(d)],
    "keys": lambda d, key, new: [list(d), list(d.keys()), list(reversed(d))],
    "values": lambda d, key, new: list(d.values()),
    "items": lambda d, key, new: list(d.items()),
    "write to all": lambda d, key, new: [_write(value) for value in d.values()],
}

LIST_ACTIONS: dict[str, Action] = {
    "append": lambda a, key, new: a.append(new()),
    "insert": lambda a, key, new: a.insert(0, new()),
    "extend": lambda a, key, new: a.extend([new(), new()]),
    "+=": lambda a, key, new: operator.iadd(a, [new()]),
    "set": lambda a, key, new: operator.setitem(a, 0, new()),
    "delete": lambda a, key, new: operator.delitem(a, slice(0, 1)),
    "pop": lambda a, key, new: a.pop(),
    "remove": lambda a, key, new: a.remove(a[-1]),
    "sort": lambda a, key, new: a.sort(key=repr),
    "reverse": lambda a, key, new: a.reverse(),
    "clear": lambda a, key, new: a.clear(),
}

WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "[]": lambda d, key: d[key],
    "get": lambda d, key: d.get(key),
    "setdefault": lambda d, key: d.setdefault(key),
    "items": lambda d, key: next(value for name, value in d.items() if name == key),
    "values": lambda d, key: list(d.values())[list(d).index(key)],
}


def _write(value: Any) -> Any:
    if isinstance(value, User):
        value.orders.append("w")
    return value


STEPS = st.fixed_dictionaries(
    {
        "who": st.integers(0, 2),
        "start": st.integers(0, 3),
        "path": st.lists(st.tuples(st.integers(0, 5), st.sampled_from(sorted(WAYS))), max_size=4),
        "action": st.integers(0, 100),
        "key": st.sampled_from("abcz"),
        "new": st.sampled_from(sorted(NEW)),
    }
)


def reach(place: Any, path: list[tuple[int, str]]) -> Any:
    """The list, dict or model at the end of the path, reading nothing beside it."""
    for number, way in path:
        if isinstance(place, BaseModel):
            fields = list(type(place).model_fields)
            part = getattr(place, fields[number % len(fields)])
        elif not place:
            break
        elif isinstance(place, dict):
            part = WAYS[way](place, list(place)[number % len(place)])
        else:
            part = place[number % len(place)]
        if not isinstance(part, BaseModel | dict | list):
            break
        place = part
    return place


def outcome(step: dict[str, Any], kept: list[Any]) -> str:
    """What comes of a step that begins at the model, or at something that earlier steps reached or took out of it."""
    place = reach(kept[-step["start"] % len(kept)], step["path"])
    kept.append(place)
    key, new = step["key"], NEW[step["new"]]
    if isinstance(place, BaseModel):
        fields = list(type(place).model_fields)
        setattr(place, fields[step["action"] % len(fields)], new())
        return ""
    actions = DICT_ACTIONS if isinstance(place, dict) else LIST_ACTIONS
    try:
        result = list(actions.values())[step["action"] % len(actions)](place, key, new)
    except (LookupError, ValueError) as error:
        return repr(error)
    if result and isinstance(result, BaseModel | dict | list):
        kept.append(result)
    return repr(ANYTHING.dump_python(result, warnings=False))


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_interleaved_overlays_each_behave_as_a_plain_copy_and_never_change_what_they_share(steps):
    shared = freeze(shop())
    views, copies = ([[make()] for _ in range(3)] for make in (lambda: overlay(shared), shop))
    for step in steps:
        assert outcome(step, views[step["who"]]) == outcome(step, copies[step["who"]])
    expected = [text(kept[0]) for kept in copies]
    assert [text(kept[0]) for kept in views] == expected
    assert [text(copy.deepcopy(kept[0])) for kept in views] == expected
    assert text(shared) == text(overlay(shared)) == text(shop())


def test_what_was_reached_once_stays_the_same_object():
    view = overlay(freeze(shop()))
    ann = view.users["a"]
    assert ann is view.users["a"] is view.users.get("a") is next(iter(view.users.values())) is dict(view.users)["a"]
    assert view.users.pop("a") is ann


def test_records_that_were_not_reached_are_not_copied():
    shared = freeze(shop())
    view = overlay(shared)
    assert view.users["a"] is not shared.users["a"]
    assert dict.__getitem__(view.users, "b") is shared.users["b"]


# Copies and dumps of overlays -----------------------------------------------------------------------------------------

SHALLOW: dict[str, Callable[[Any], Any]] = {
    "dict()": dict,
    "{**}": lambda d: {**d},
    "f(**)": lambda d: (lambda **named: named)(**d),
    "| on the left": lambda d: d | {},
    "| on the right": lambda d: {} | d,
    "|= of a dict": lambda d: operator.ior({}, d),
    "update of a dict": lambda d: (taken := {}).update(d) or taken,
    "copy()": lambda d: d.copy(),
    "copy.copy": copy.copy,
    "items": lambda d: dict(d.items()),
}

DEEP: dict[str, Callable[[Any], Any]] = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}

DEEP_OF_MODELS = {**DEEP, "model_copy": lambda model: model.model_copy(deep=True)}


def half_touched() -> tuple[Shop, Shop]:
    """An overlay with a record that was changed, one that was removed, one that came and one as it was; and a plain
    model of the same contents."""
    view, plain = overlay(freeze(shop())), shop()
    for model in (view, plain):
        model.users["a"].methods["b"].balance = 0.0
        del model.users["b"]
        model.users["d"] = user("Dee")
        model.notes["a"]["b"].append(4)
    return view, plain


@pytest.mark.parametrize("way", SHALLOW)
def test_a_shallow_copy_of_a_view_is_a_plain_dict_of_the_view_s_own_records(way):
    view, plain = half_touched()
    taken = SHALLOW[way](view.users)
    assert type(taken) is dict
    assert all(record is view.users[key] for key, record in taken.items())
    assert repr(taken) == repr(plain.users)


@pytest.mark.parametrize("way", DEEP)
def test_a_deep_copy_of_a_view_is_a_plain_dict_apart_from_it(way):
    view, plain = half_touched()
    taken = DEEP[way](view.users)
    assert type(taken) is dict
    assert taken == plain.users
    taken["c"].name.known_as.append("more")
    assert text(view) == text(plain)


@pytest.mark.parametrize("way", DEEP_OF_MODELS)
def test_a_deep_copy_of_an_overlay_is_a_plain_model_apart_from_it(way):
    view, plain = half_touched()
    taken = DEEP_OF_MODELS[way](view)
    assert taken == plain
    taken.users["c"].methods["a"].limits["a"] = 0.0
    taken.stock["a"] = 0
    assert text(view) == text(plain)


def test_an_overlay_is_dumped_as_a_plain_model_is():
    view, plain = half_touched()
    assert text(view) == text(plain)
    assert repr(view) == repr(plain)
    assert view.model_dump_json() == plain.model_dump_json()
    assert view.model_dump(exclude_unset=True) == plain.model_dump(exclude_unset=True)
    assert json.dumps(view.notes) == json.dumps(plain.notes)


# Unchanged ------------------------------------------------------------------------------------------------------------


class Box(BaseModel):
    value: Any = None
    boxes: dict[str, Box] = {}
    table: dict[str, Any] = {}
    rest: list[Any] = []


LOOKALIKES = [0, 0.0, -0.0, False, 1, 1.0, True, "1", "", None, Decimal("1.0"), Decimal("1.00"), date(2024, 1, 1)]
VALUES = st.sampled_from(LOOKALIKES)
CONTENTS = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
)
TABLES = st.dictionaries(st.sampled_from("ab"), CONTENTS, max_size=2)
BOXES = st.recursive(
    st.builds(Box, value=CONTENTS, table=TABLES, rest=st.lists(CONTENTS, max_size=2)),
    lambda inner: st.builds(Box, value=VALUES, boxes=st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
    max_leaves=3,
)


@st.composite
def _written(draw: st.DrawFn) -> tuple[Box, Box]:
    """A shared box, and an overlay of it, written to as often with equal values as with others."""
    shared = freeze(draw(BOXES))
    view = overlay(shared)
    for _ in range(draw(st.integers(0, 3))):
        place = reach(view, [(draw(st.integers(0, 3)), "[]") for _ in range(draw(st.integers(0, 4)))])
        if isinstance(place, Box):
            place.value = draw(st.just(copy.deepcopy(place.value)) | CONTENTS)
        elif isinstance(place, dict):
            key = draw(st.sampled_from("ab"))
            old = place.pop(key, None)
            if draw(st.booleans()):
                place.update({key: draw(st.just(old) | CONTENTS)})
        else:
            old = place.pop() if place else 1
            place.extend(draw(st.lists(st.just(old) | VALUES, max_size=2)))
    return shared, view


@settings(max_examples=200, deadline=None)
@given(_written())
def test_unchanged_is_only_what_reads_the_same_to_the_letter(boxes):
    shared, view = boxes
    if is_unchanged(view, shared):
        assert json_text(view) == json_text(shared)


@settings(max_examples=50, deadline=None)
@given(BOXES)
def test_reading_an_overlay_leaves_it_unchanged(box):
    def read(value: Any) -> None:
        if isinstance(value, BaseModel):
            value = value.__dict__
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            read(part)

    shared = freeze(box)
    view = overlay(shared)
    read(view)
    assert is_unchanged(view, shared)


@pytest.mark.parametrize("place", ["a field", "a table", "a record", "a list"])
@pytest.mark.parametrize(("old", "new"), [(1, 1.0), (1, True), (1.0, True), (0.0, -0.0), (0, False), (None, 0)])
def test_values_that_are_equal_but_read_differently_are_changes(place, old, new):
    shared = freeze(Box(value=old, table={"a": old, "b": []}, boxes={"a": Box(value=old)}, rest=[old]))
    view = overlay(shared)
    if place == "a field":
        view.value = new
    elif place == "a table":
        view.table["a"] = new
    elif place == "a record":
        view.boxes["a"].value = new
    else:
        view.rest[0] = new
    assert not is_unchanged(view, shared)


def test_a_record_that_was_removed_and_put_back_is_unchanged():
    shared = freeze(shop())
    view = overlay(shared)
    view.users["a"] = view.users.pop("a")
    view.users["b"].orders.append("3")
    view.users["b"].orders.pop()
    assert is_unchanged(view, shared)


# The shared model -----------------------------------------------------------------------------------------------------

DICT_WRITES: dict[str, Callable[[Any], Any]] = {
    "set": lambda d: operator.setitem(d, "a", 1),
    "delete": lambda d: operator.delitem(d, "a"),
    "|=": lambda d: operator.ior(d, {"a": 1}),
    "clear": lambda d: d.clear(),
    "pop": lambda d: d.pop("a"),
    "popitem": lambda d: d.popitem(),
    "setdefault": lambda d: d.setdefault("new", 1),
    "update": lambda d: d.update(a=1),
}

LIST_WRITES: dict[str, Callable[[Any], Any]] = {
    "set": lambda a: operator.setitem(a, 0, 1),
    "delete": lambda a: operator.delitem(a, 0),
    "+=": lambda a: operator.iadd(a, [1]),
    "*=": lambda a: operator.imul(a, 2),
    "append": lambda a: a.append(1),
    "clear": lambda a: a.clear(),
    "extend": lambda a: a.extend([1]),
    "insert": lambda a: a.insert(0, 1),
    "pop": lambda a: a.pop(),
    "remove": lambda a: a.remove(a[0]),
    "reverse": lambda a: a.reverse(),
    "sort": lambda a: a.sort(),
}

MODEL_WRITES: dict[str, Callable[[Any], Any]] = {
    "set": lambda user: setattr(user, "orders", []),
    "delete": lambda user: delattr(user, "orders"),
}

SHARED_WRITES = [
    *(pytest.param(lambda user: user, write, id=f"model {name}") for name, write in MODEL_WRITES.items()),
    *(pytest.param(lambda user: user.methods, write, id=f"dict {name}") for name, write in DICT_WRITES.items()),
    *(pytest.param(lambda user: user.orders, write, id=f"list {name}") for name, write in LIST_WRITES.items()),
]


@pytest.mark.parametrize(("part", "write"), SHARED_WRITES)
def test_a_write_to_what_was_read_past_the_view_is_stopped_and_not_done(part, write):
    shared = freeze(shop())
    ann = next(iter(dict.values(overlay(shared).users)))
    with pytest.raises(SharedWriteError, match=f"a write to the {type(part(ann)).__name__} that all episodes share"):
        write(part(ann))
    assert text(shared) == text(shop())


def test_what_another_model_took_from_a_view_does_not_write_to_the_shared_model():
    shared = freeze(shop())
    taken = Shop(**dict(shop()) | {"users": overlay(shared).users})
    with contextlib.suppress(SharedWriteError):
        taken.users["a"].orders.append("w")
    assert text(shared) == text(shop())


def test_no_tool_can_swallow_a_stopped_write():
    assert not issubclass(SharedWriteError, Exception)


class WithPrivate(BaseModel):
    _hidden: int = PrivateAttr(1)


class WithExtra(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[]] * 2, "one list is in two places"),
        ([Name(first="twice")] * 2, "one Name is in two places"),
        ([{}] * 2, "one dict is in two places"),
        ({1, 2}, "a set cannot be shared"),
        ((1, []), "a tuple cannot be shared"),
        (bytearray(b"x"), "a bytearray cannot be shared"),
        (object(), "a object cannot be shared"),
        (OverlayDict({}), "a OverlayDict cannot be shared"),
        (WithPrivate(), "a WithPrivate cannot be shared"),
        (WithExtra(more=1), "a WithExtra cannot be shared"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_shared_is_refused_by_its_type(value, said):
    with pytest.raises(TypeError, match=said):
        freeze(Box(value=value))
