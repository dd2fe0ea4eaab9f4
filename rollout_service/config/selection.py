"""How tasks are chosen: by a domain or a mix of domains, and by ids.

Invariant: a mix's weights are finite and above 0. After any number of draws each domain has had its share, rounded up
or down, so even a short collection follows the weights.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import rollout_service.config.arguments as arguments
from rollout_service.errors import TaskError
from rollout_service.redaction import shown

MOST_WEIGHT = 1e9
"""Largest weight of a domain or a task in a sampler."""

_WEIGHTS_EXAMPLE = "Give weights by domain or by domain/id, such as {'retail': 2, 'retail/7': 0.5}."

_EXAMPLE = "Give a name, or a mix such as {'retail': 2, 'airline': 1}; as text, retail=2,airline=1."


def read_domain(given: Any, field: str) -> str | dict[str, float]:
    """Read a domain's name, or a mix: a mapping of weights by domain, or text such as `retail=2,airline=1`.

    Args:
        field: name of the setting or argument, for errors.

    Raises:
        TaskError: it is neither, or a weight is not a finite number above 0.
    """
    if isinstance(given, str):
        if "=" not in given and "," not in given:
            if not given.strip():
                raise TaskError(f"{field} is empty.", _EXAMPLE)
            return given
        given = _parsed(given, field)
    if not isinstance(given, Mapping):
        raise TaskError(f"{field} is {shown(given)}.", _EXAMPLE)
    if not given:
        raise TaskError(f"{field} is a mix without a domain.", _EXAMPLE)
    for name in given:
        if not isinstance(name, str) or not name.strip():
            raise TaskError(f"{field}: {shown(name)} is not the name of a domain.", _EXAMPLE)
    return {name: _read_weight(name, weight, field) for name, weight in given.items()}


def _read_weight(name: str, given: Any, field: str) -> float:
    with contextlib.suppress(OverflowError):  # for a whole number that no float can hold
        if isinstance(given, Real) and not isinstance(given, bool) and 0 < float(given) < math.inf:
            return float(given)
    raise TaskError(
        f"{field}: the weight of {name} is {shown(given)}.",
        "Give weights above 0, and leave out a domain that is not wanted.",
    )


def _parsed(text: str, field: str) -> dict[str, float]:
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, equals, weight = (piece.strip() for piece in part.partition("="))
        try:
            number = float(weight)
        except ValueError:
            equals = ""
        if not equals:
            raise TaskError(f"{field} is {text!r}: {part!r} is not a domain with its weight.", _EXAMPLE)
        if name in mix:
            raise TaskError(f"{field} is {text!r}: {name} is there twice.", _EXAMPLE)
        mix[name] = number
    return mix


def read_ids(given: Any, field: str) -> list[str]:
    """Read task ids, as text, from a list of texts or whole numbers.

    Raises:
        TaskError: it is something else, such as a single text, or is empty.
    """
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise TaskError(f"{field} is {shown(given)}, not a list.", "Give a list of task ids, such as ['0', '7'].")
    if not given:
        raise TaskError(f"{field} is empty.", "Leave it out for the whole split.")
    for task_id in given:
        if isinstance(task_id, bool) or not isinstance(task_id, (str, Integral)):
            raise TaskError(
                f"{field}: {shown(task_id)} is not a task id.", "Ids are text; `rollout-service tasks` lists them."
            )
    return [str(task_id) for task_id in given]


def read_task_weights(given: Any, field: str) -> dict[str, float]:
    """Read weights by name of a domain or a task. A weight of 0 means never.

    Args:
        field: name of the setting or argument, for errors.

    Raises:
        TaskError: it is no mapping of names to numbers from 0 to `MOST_WEIGHT`, or is empty.
    """
    if not isinstance(given, Mapping) or not given:
        raise TaskError(f"{field} is {shown(given)}.", _WEIGHTS_EXAMPLE)
    weights = {}
    for name, weight in given.items():
        if not isinstance(name, str) or not name.strip():
            raise TaskError(f"{field}: {shown(name)} is no name of a domain or a task.", _WEIGHTS_EXAMPLE)
        weights[name] = arguments.number(f"{field}: the weight of {name}", weight, 0.0, MOST_WEIGHT, TaskError)
    return weights


class Rotation(Iterator[str]):
    """Domains in turn, each as often as its weight says.

    The quota method of apportionment (Balinski and Young): among the domains that stay within their share with one more
    draw, it takes the one whose next share is complete first. The seed breaks ties.
    """

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        names = list(weights)
        random.Random(f"mix:{seed}").shuffle(names)
        exact = {name: Fraction(weights[name]) for name in names}
        unit = math.lcm(*(weight.denominator for weight in exact.values()))
        self._shares = {name: int(weight * unit) for name, weight in exact.items()}
        """In whole numbers, which are compared exactly and far faster than fractions."""
        self._total = sum(self._shares.values())
        common = math.lcm(*self._shares.values())
        self._steps = {name: common // share for name, share in self._shares.items()}
        """By domain: what one draw completes of its share, in a unit that all domains have in common."""
        self._drawn = dict.fromkeys(names, 0)

    def __next__(self) -> str:
        drawn = self._drawn
        draws = sum(drawn.values()) + 1
        may = [name for name, share in self._shares.items() if drawn[name] * self._total < draws * share]
        chosen = min(may, key=lambda name: (drawn[name] + 1) * self._steps[name])
        drawn[chosen] += 1
        return chosen
