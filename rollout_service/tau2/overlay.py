"""Overlays: private, writable views of one shared pydantic model. They copy only what is reached through them.

Invariant: what an overlay gives out is its own or immutable, so no other overlay sees a write to it. The shared model
is frozen. Only C code that reads a dict's storage can reach a part of it in another way. A write to that part raises
`SharedWriteError`, which no tool can swallow.

A τ² database has megabytes, and an episode touches a few of its records. An overlay costs kilobytes and microseconds.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn, TypeVar, cast

from pydantic import BaseModel

from rollout_service.errors import SharedWriteError

M = TypeVar("M", bound=BaseModel)

_IMMUTABLE = frozenset({str, int, float, bool, type(None), bytes, date, datetime, time, timedelta, Decimal})


def _is_immutable(value: Any) -> bool:
    return type(value) in _IMMUTABLE or isinstance(value, Enum)


# The shared model -----------------------------------------------------------------------------------------------------


def _forbid(self: Any, *_: Any, **__: Any) -> NoReturn:
    raise SharedWriteError(f"a write to the {type(self).__name__} that all episodes share was stopped")


class FrozenDict(dict[Any, Any]):
    """A dict of the shared model."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _forbid


class FrozenList(list[Any]):
    """A list of the shared model."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = clear = extend = insert = pop = remove = _forbid
    reverse = sort = _forbid


_FROZEN: set[type] = set()
"""The classes of frozen models. A search in it is quicker than pydantic's own `isinstance`."""

_FLAT: set[type] = set()
"""Those of models in which every value is immutable."""


@functools.cache
def _frozen_class(kind: type[BaseModel], is_flat: bool) -> type[BaseModel]:
    body = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    frozen: type[BaseModel] = types.new_class(
        kind.__name__, (kind,), exec_body=lambda names: names.update(body, __setattr__=_forbid, __delattr__=_forbid)
    )
    _FROZEN.add(frozen)
    if is_flat:
        _FLAT.add(frozen)
    return frozen


def freeze(model: M) -> M:
    """Make the model and everything in it read-only, in place.

    Raises:
        TypeError: it holds something that cannot be frozen, or the same mutable object in two places, which overlays
            would turn into two objects.
    """
    _freeze(model, set())
    return model


def _freeze(value: Any, seen: set[int]) -> Any:
    if _is_immutable(value):
        return value
    if id(value) in seen:
        raise TypeError(f"one {type(value).__name__} is in two places")
    seen.add(id(value))
    if type(value) is dict and all(type(key) is str or isinstance(key, Enum) for key in value):
        return FrozenDict({key: _freeze(item, seen) for key, item in value.items()})
    if type(value) is list:
        return FrozenList(_freeze(item, seen) for item in value)
    if isinstance(value, BaseModel) and value.__pydantic_extra__ is None and value.__pydantic_private__ is None:
        for name, item in value.__dict__.items():
            value.__dict__[name] = _freeze(item, seen)
        is_flat = all(type(item) in _IMMUTABLE for item in value.__dict__.values())
        _set(value, "__class__", _frozen_class(type(value), is_flat))
        return value
    raise TypeError(f"a {type(value).__name__} cannot be shared")


# Overlays -------------------------------------------------------------------------------------------------------------


def overlay(shared: M) -> M:
    """A private view of a frozen model. It has the class that the model had before it was frozen."""
    kind = cast("type[M]", type(shared).__base__)
    view = kind.__new__(kind)
    # The same as pydantic's own __copy__ sets. The test is inline because a search through a table makes hundreds.
    values = shared.__dict__
    if type(shared) in _FLAT:
        own = values.copy()
    else:
        own = {name: value if type(value) in _IMMUTABLE else _private(value) for name, value in values.items()}
    _set(view, "__dict__", own)
    given = shared.__pydantic_fields_set__  # it only grows, so one that is full can be shared
    _set(view, "__pydantic_fields_set__", given if len(given) == len(kind.__pydantic_fields__) else given.copy())
    _set(view, "__pydantic_extra__", None)
    _set(view, "__pydantic_private__", None)
    return view


_set = object.__setattr__


def _private(value: Any) -> Any:
    kind = type(value)
    if kind is FrozenList:
        return [item if type(item) in _IMMUTABLE else _private(item) for item in value]
    if kind is FrozenDict:
        return dict(value) if all(map(_is_immutable, value.values())) else OverlayDict(value)
    return overlay(value) if kind in _FROZEN else value


_UNTOUCHED: frozenset[Any] = frozenset()
"""The keys that were reached in a new view. A set of its own for each view of thousands would take time and memory."""


class OverlayDict(dict[Any, Any]):
    """A private view of a frozen dict. Each value becomes this view's own when it is first reached.

    Until then the storage holds the shared value, which reads the same. So pydantic and `json`, which read a dict's
    storage directly, see the right contents.
    """

    __slots__ = ("before", "shared", "touched")

    before: dict[Any, Any]
    """What reached records were before, while the view is watched, see `rollout_service.tau2.database_watch`."""

    def __init__(self, shared: FrozenDict) -> None:
        super().__init__(shared)
        self.shared = shared
        """The frozen dict behind this view."""
        self.touched: set[Any] | frozenset[Any] = _UNTOUCHED
        """Keys that were reached, written or removed. Every other value is the shared one."""

    def changed(self) -> list[Any]:
        """Keys whose values differ from the shared ones: changed, added or removed."""
        own, shared = dict.__getitem__, self.shared
        return [
            key
            for key in self.touched
            if key not in self or key not in shared or not is_unchanged(own(self, key), shared[key])
        ]

    def _touch(self, key: Any) -> None:
        if isinstance(self.touched, frozenset):
            self.touched = set()
        self.touched.add(key)

    def __getitem__(self, key: Any) -> Any:
        value = dict.__getitem__(self, key)
        if key not in self.touched:
            value = _private(value)
            dict.__setitem__(self, key, value)
            self._touch(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self._touch(key)

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        self._touch(key)

    def __iter__(self) -> Iterator[Any]:  # defined here, so that dict(view) and {**view} use __getitem__
        return super().__iter__()

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - this is get

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[Any, Any]:  # type: ignore[override]
        return ItemsView(self)

    def pop(self, key: Any, *default: Any) -> Any:
        if key not in self:
            return {}.pop(key, *default)
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[Any, Any]:
        if not self:
            return {}.popitem()
        key = next(reversed(self))
        return key, self.pop(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *others: Any, **named: Any) -> None:
        for key, value in dict(*others, **named).items():
            self[key] = value

    def clear(self) -> None:
        self.touched = {*self.touched, *self}
        super().clear()

    def copy(self) -> dict[Any, Any]:
        return dict(self)

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    __copy__ = copy

    def __reduce_ex__(self, _: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return dict, (dict(self),)


def is_unchanged(value: Any, shared: Any) -> bool:
    """Whether the overlay, or a part of one, still equals the shared value, including the type of each value. May
    return False for a part that was replaced by an equal one."""
    if value is shared:
        return True
    if type(shared) in _FROZEN:
        return type(value) is type(shared).__base__ and _are_unchanged(value.__dict__, shared.__dict__)
    if isinstance(value, OverlayDict) and value.shared is shared:
        return not value.changed()
    if isinstance(value, dict):
        return isinstance(shared, dict) and _are_unchanged(value, shared)
    if isinstance(value, list):
        if not isinstance(shared, list) or len(value) != len(shared):
            return False
        return all(map(operator.is_, value, shared)) or all(map(is_unchanged, value, shared))
    return type(value) is type(shared) and repr(value) == repr(shared)  # 1, 1.0 and True are equal, -0.0 and 0.0 too


def _are_unchanged(values: Mapping[Any, Any], shared: Mapping[Any, Any]) -> bool:
    if values.keys() != shared.keys():
        return False
    if all(map(operator.is_, map(values.get, shared), shared.values())):  # as most are, and a loop in C
        return True
    for name, other in shared.items():
        value = values[name]
        if value is not other and not is_unchanged(value, other):
            return False
    return True
