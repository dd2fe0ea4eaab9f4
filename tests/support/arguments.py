"""Wrong arguments: values of every kind, and what a public function may make of them.

Invariant: a value that fits is taken, and any other is refused by one of the project's errors, which names the argument
and says what to do. There is no third way: no other exception, and no value that is read as another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rollout_service.errors import RolloutError

Fits = Callable[[Any], bool]

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-(2**70), -(2**31), -1, 0, 1, 2, 3, 8, 2**31 - 1, 2**31, 2**70]),
    st.integers(-10, 10),
    st.floats(),
    st.builds(np.int64, st.integers(-3, 3)),
    st.builds(np.float32, st.floats(width=32)),
    st.sampled_from(["", " ", "8", "true", "None", "retail", "train", "0", "a=1", "\0", "../x", "sk-" + "a" * 40]),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(-1, 3) | st.text(max_size=2) | st.none(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(-1, 3), max_size=2),
    st.builds(object),
)


def check(
    call: Callable[[Any], Any],
    name: str,
    fits: Fits,
    says: str | None = None,
    examples: int = 60,
    left_out: Fits | None = None,
) -> None:
    """Call with values of every kind; see the invariant.

    Args:
        says: how the errors name the argument; None: as it is called.
        left_out: values that are not tried, because the call would do what they ask for, which takes long.
    """
    says = name if says is None else says

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(VALUES)
    def try_value(value: Any) -> None:
        assume(left_out is None or not left_out(value))
        refused = refusal(lambda: call(value), f"{name}={value!r}")
        if refused is None:
            assert fits(value), f"{name}={value!r} was accepted"
        else:
            assert not fits(value), f"{name}={value!r} is right, and was refused: {refused}"
            assert says in str(refused), f"{name}={value!r}: the error does not name the argument: {refused}"

    try_value()


def refusal(call: Callable[[], Any], what: str) -> RolloutError | None:
    """The project's error that the call ends with, which has a remedy and shows no key; None where it ends well. Any
    other exception fails the test."""
    try:
        call()
    except RolloutError as error:
        found = error
    except Exception as error:
        pytest.fail(f"{what}: {type(error).__name__}: {error}")
    else:
        return None
    assert found.remedy, f"{what}: no remedy: {found}"
    assert "sk-aaaa" not in str(found), "what looks like a key was printed"
    return found


def whole(least: float = -math.inf, most: float = math.inf) -> Fits:
    """Whole numbers in that range; a truth value is none."""
    return lambda value: isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= value <= most


def number(least: float, most: float) -> Fits:
    """Numbers in that range."""

    def fits(value: Any) -> bool:
        is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        return is_number and least <= value <= most

    return fits


def truth(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


def one_of(*choices: Any) -> Fits:
    """One of a few values, of the same type."""
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def or_none(fits: Fits) -> Fits:
    """Or None."""
    return lambda value: value is None or fits(value)


def nothing(value: Any) -> bool:
    """No value of these kinds fits."""
    return False
