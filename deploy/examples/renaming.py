"""Renaming: other digits for the ids in a demonstration, so that an id can be copied but not learned by heart.

Invariant: a number gets the same new digits, as many as it had, wherever it stands in its row, and different numbers
stay different. So whatever was a copy still is one. What all rows begin with does not change, nor does a number that
occurs in it.

A number is a run of at least `SHORTEST` tokens that are digits: retail's ids, the numbers in names of users and
payment methods, zip codes. A run beside a decimal point is an amount, with which one calculates, and stays. Tokens are
replaced one by one, so masks and positions hold. A tokenizer that has tokens of several digits would have to encode
the text again. It has no `Digits`, and nothing is renamed for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Digits:
    """A tokenizer's tokens for the digits from 0 to 9, and for a decimal point."""

    tokens: tuple[int, ...]
    point: int

    @classmethod
    def of(cls, tokenizer: Any) -> Digits | None:
        """None: the tokenizer has other tokens with digits in them."""
        texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        special = {*tokenizer.all_special_ids}
        found = {
            text: token
            for token, text in enumerate(texts)
            if token not in special and any(digit in text for digit in "0123456789")
        }
        if sorted(found) != [*"0123456789"]:
            return None
        return cls(tuple(found[digit] for digit in "0123456789"), texts.index("."))


def renamed(ids: NDArray[np.int64], shared: int, digits: Digits, random: np.random.Generator) -> NDArray[np.int64]:
    """A row with other numbers.

    Args:
        ids: int64[tokens], without padding.
        shared: how many tokens all rows begin with.
        random: decides the new digits.
    """
    result = ids.copy()
    runs = [(start, end) for start, end in _runs(np.isin(ids, digits.tokens)) if end - start >= SHORTEST]
    numbers = [tuple(ids[start:end].tolist()) for start, end in runs]
    # What stays is its own new name, so that no other number can get it.
    names = {
        number: number
        for (start, end), number in zip(runs, numbers, strict=True)
        if start < shared or _is_amount(ids, start, end, digits)
    }
    taken = set(names)
    for (start, end), number in zip(runs, numbers, strict=True):
        while number not in names:
            name = tuple(random.choice(digits.tokens, end - start).tolist())
            if name not in taken:
                names[number] = name
                taken.add(name)
        result[start:end] = names[number]
    return result


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _is_amount(ids: NDArray[np.int64], start: int, end: int, digits: Digits) -> bool:
    """Whether a decimal point and another digit stand before or after the run."""
    beside = [*ids[start - 2 : start][::-1]] if start >= 2 else [], [*ids[end : end + 2]]
    return any(pair[0] == digits.point and pair[1] in digits.tokens for pair in beside if len(pair) == 2)
