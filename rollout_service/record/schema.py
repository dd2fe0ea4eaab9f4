"""The schema of a record, as its dataclasses declare it.

Invariant: the type hints of the dataclasses are the only list of fields. A record's plain form, the check of every
value's type and the columns of Parquet (`rollout_service.record.parquet`) all follow from them, so no form can forget a
field.

A hint may be `str`, `int`, `float`, `bool`, a `StrEnum`, a one-dimensional array, a dataclass, a list of these,
`X | None`, or a dict, whose values may be any JSON.
"""

from __future__ import annotations

import functools
import reprlib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

ADDED: Mapping[str, Any] = types.MappingProxyType({"added": True})
"""Metadata of a field that older records lack. They are read with its default. Every other field must be present."""

_AS_THEY_ARE = frozenset({str, int, float, bool, dict, type(None)})
"""Types of values that are plain already: most values of a record, so `to_plain` looks for them first."""

_SCALARS = {str: "text", bool: "true or false", int: "an integer", float: "a number"}


def hints(cls: Any) -> dict[str, Any]:
    """Field name to type of a dataclass."""
    return _hints(cls)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    resolved = get_type_hints(cls)
    return {item.name: resolved[item.name] for item in fields(cls)}


@functools.cache
def array_dtype(hint: Any) -> np.dtype[Any] | None:
    """The dtype of an array's hint, such as `NDArray[np.int32]`, which numpy writes in two ways; else None."""
    if get_origin(hint) is npt.NDArray:  # numpy 2.5 on Python 3.12 and later: an alias with a name
        return np.dtype(get_args(hint)[0])
    return np.dtype(get_args(get_args(hint)[1])[0]) if get_origin(hint) is np.ndarray else None


@functools.cache
def or_none(hint: Any) -> tuple[Any, bool]:
    """`hint` without its None, and whether it allows None."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    chosen = [part for part in get_args(hint) if part is not types.NoneType]
    if len(chosen) != 1:
        raise TypeError(f"{hint} is a union; records allow only X | None")
    return chosen[0], True


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(item.name for item in fields(cls))


def shallow(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, as they are.

    Raises:
        TypeError: it is none.
    """
    if not is_dataclass(value):
        raise TypeError(f"{value!r} is no JSON")
    kind: Any = type(value)
    return {name: getattr(value, name) for name in _names(kind)}


def to_plain(value: Any) -> Any:
    """A dataclass as a dict of plain JSON values; arrays become lists."""
    kind: Any = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if is_dataclass(value):
        return {name: to_plain(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, StrEnum) else value


def from_plain(hint: Any, value: Any, where: str = "") -> Any:
    """The inverse of `to_plain`. It checks that every value is of its field's type.

    Args:
        value: plain, or already of the type `hint`; an array may replace a list.
        where: path of the value in the record, for errors.

    Raises:
        ValueError: names the path, the value and the expected type.
    """
    hint, may_be_none = or_none(hint)
    if may_be_none and value is None:
        return None
    if type(value) is hint and hint in _SCALARS:
        return value
    if is_dataclass(hint):
        return _dataclass(hint, value, where)
    if (dtype := array_dtype(hint)) is not None:
        return _array(dtype, value, where)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            _raise_wrong(value, "a list", where)
        (item,) = get_args(hint)
        return [from_plain(item, part, f"{where}[{number}]") for number, part in enumerate(value)]
    if get_origin(hint) is dict:
        return _dict(hint, value, where)
    if hint is Any:
        return value
    if issubclass(hint, StrEnum):
        if value not in list(hint):
            _raise_wrong(value, f"one of {', '.join(hint)}", where)
        return hint(value)
    allowed = (int, float) if hint is float else hint
    if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
        _raise_wrong(value, _SCALARS[hint], where)
    return value


def _dataclass(cls: Any, value: Any, where: str) -> Any:
    known = hints(cls)
    if isinstance(value, cls):
        value = {name: getattr(value, name) for name in known}
    if not isinstance(value, dict):
        _raise_wrong(value, "an object", where)
    for name in value:
        if name not in known:
            raise ValueError(f"{_path(where, name)}: there is no such field")
    for item in fields(cls):
        if item.name not in value and item.metadata != ADDED:
            raise ValueError(f"{_path(where, item.name)} is missing")
    return cls(**{name: from_plain(known[name], part, _path(where, name)) for name, part in value.items()})


def _dict(hint: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _raise_wrong(value, "an object", where)
    _, kind = get_args(hint)
    for key, part in value.items():
        if not isinstance(key, str):
            _raise_wrong(key, "a key, which is text", where)
        from_plain(kind, part, _path(where, key))
    return value


def _array(dtype: np.dtype[Any], value: Any, where: str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == 1:
        return value
    if not isinstance(value, list):
        _raise_wrong(value, f"a list that makes {dtype}[n]", where)
    allowed = {int, float} if dtype.kind == "f" else {int}
    if not set(map(type, value)) <= allowed:
        at = next(number for number, item in enumerate(value) if type(item) not in allowed)
        _raise_wrong(value[at], _SCALARS[float if dtype.kind == "f" else int], f"{where}[{at}]")
    try:
        with np.errstate(over="raise"):
            return np.array(value, dtype=dtype)
    except (OverflowError, FloatingPointError) as error:
        raise ValueError(f"{where} holds a number that {dtype} does not: {error}") from error


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _raise_wrong(value: Any, wanted: str, where: str) -> NoReturn:
    raise ValueError(f"{where or 'it'} is {reprlib.repr(value)}, not {wanted}")
