"""Checks of the arguments of public functions.

Invariant: a check returns the value, or raises an error with the argument's name, the value and what is allowed. It
converts nothing: "8" is not 8, and True is not 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from rollout_service.errors import ConfigError, RolloutError
from rollout_service.redaction import shown

T = TypeVar("T")

MOST_TOKEN_ID = 2**31 - 1
"""Token ids are int32."""


def whole(
    name: str, value: Any, least: int | None = None, most: int | None = None, error: type[RolloutError] = ConfigError
) -> int:
    """Check that the value is a whole number, also one of numpy's, and return it as an int.

    Raises:
        RolloutError: of class `error`: it is none, or is out of range.
    """
    bounds = "" if least is None else f", at least {least}" if most is None else f" from {least} to {most}"
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least) or (most is not None and value > most):
        raise error(f"{name} is {shown(value)}.", f"Give a whole number{bounds}.")
    return int(value)


def number(name: str, value: Any, least: float, most: float, error: type[RolloutError] = ConfigError) -> float:
    """Check that the value is a number in the range.

    Raises:
        RolloutError: of class `error`: it is none, or is out of range.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise error(f"{name} is {shown(value)}.", f"Give a number from {least:g} to {most:g}.")
    return float(value)


def truth(name: str, value: Any, error: type[RolloutError] = ConfigError) -> bool:
    """Check that the value is True or False.

    Raises:
        RolloutError: of class `error`: it is neither.
    """
    if not isinstance(value, bool):
        raise error(f"{name} is {shown(value)}.", "Give True or False.")
    return value


def text(name: str, value: Any, example: str, error: type[RolloutError] = ConfigError) -> str:
    """Check that the value is text that is not blank.

    Raises:
        RolloutError: of class `error`: it is not. The remedy shows `example`.
    """
    if not isinstance(value, str) or not value.strip():
        raise error(f"{name} is {shown(value)}.", f"Give text, such as {example!r}.")
    return value


def texts(name: str, value: Any, example: str, error: type[RolloutError] = ConfigError) -> list[str]:
    """Check that the value is a list of texts, none of them blank.

    Raises:
        RolloutError: of class `error`: it is a single text, no list, or empty.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or not (items := list(value)):
        raise error(f"{name} is {shown(value)}.", f"Give a list, such as [{example!r}].")
    return [text(f"{name}[{place}]", item, example, error) for place, item in enumerate(items)]


def choice(name: str, value: Any, choices: Iterable[str], error: type[RolloutError] = ConfigError) -> str:
    """Check that the value is one of `choices`.

    Raises:
        RolloutError: of class `error`: it is none of them.
    """
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise error(f"{name} is {shown(value)}.", f"Choose one of {', '.join(known)}.")
    return value


def path(name: str, value: Any, error: type[RolloutError] = ConfigError) -> Path:
    """Check that the value is the path of a file or a folder.

    Raises:
        RolloutError: of class `error`: it is none.
    """
    if not isinstance(value, (str, Path)) or not str(value).strip() or "\0" in str(value):
        raise error(f"{name} is {shown(value)}.", "Give the path of a file.")
    return Path(value)


def optional(check: Callable[..., T], name: str, value: Any, *rules: Any, **more: Any) -> T | None:
    """Apply `check` to a value that may also be None."""
    return None if value is None else check(name, value, *rules, **more)
