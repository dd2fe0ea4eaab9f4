"""Other digits in a demonstration: what must stay, stays, and the rest is a renaming."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deploy.examples.renaming import SHORTEST, Digits, _runs, renamed
from rollout_service.chat.tokenizer_files import load_tokenizer

DIGITS = Digits(tokens=tuple(range(10)), point=10)

pieces = st.one_of(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).map(tuple),
    st.sampled_from([(1, 2, 3, 4), (1, 2, 3, 5), (7,) * 10]),  # so that numbers come twice
    st.sampled_from([(10,), (11,), (12,)]),
)
rows = st.lists(pieces, min_size=1, max_size=40).map(lambda parts: np.asarray([t for part in parts for t in part]))


def _numbers(ids):
    return [(start, end) for start, end in _runs(ids <= 9) if end - start >= SHORTEST]


@given(ids=rows, shared=st.integers(0, 40), seed=st.integers(0, 99))
def test_equal_numbers_stay_equal_different_ones_different_and_all_else_as_it_was(ids, shared, seed):
    other = renamed(ids, shared, DIGITS, np.random.default_rng(seed))
    numbers = _numbers(ids)
    assert _numbers(other) == numbers, "each has as many digits as before"
    names = {(tuple(ids[start:end]), tuple(other[start:end])) for start, end in numbers}
    assert len({old for old, _ in names}) == len({new for _, new in names}) == len(names)

    outside = np.ones(len(ids), bool)
    for start, end in numbers:
        outside[start:end] = False
    assert (other == ids)[outside].all()
    assert (other == ids)[:shared].all()
    back = {new: old for old, new in names}
    for start, end in numbers:
        other[start:end] = back[tuple(other[start:end])]
    assert (other == ids).all(), "it can be undone"


def test_amounts_and_what_all_rows_begin_with_stay_and_an_id_changes_wherever_it_stands():
    amount, shared, order = [1, 2, 3, 4, 10, 5, 6], [9, 9, 9, 9], [4, 5, 6, 7, 8]
    ids = np.asarray([*shared, 11, *order, 12, *amount, 11, *shared, 11, *order, 10, 11])
    other = renamed(ids, 4, DIGITS, np.random.default_rng(0)).tolist()
    assert other[:5] == [*shared, 11]
    assert other[11:23] == [*amount, 11, *shared]
    assert other[5:10] == other[24:29] != order, "the full stop after it makes no amount of it"


def test_the_embedded_tokenizer_has_a_token_for_each_digit_and_one_that_joins_digits_is_not_used():
    tokenizer, _ = load_tokenizer(None)
    digits = Digits.of(tokenizer)
    assert digits is not None
    assert tokenizer.decode([*digits.tokens, digits.point]) == "0123456789."

    class Joins:
        all_special_ids = ()

        def __len__(self):
            return 12

        def decode(self, ids):
            return [*"0123456789", ".", "10"][ids[0]]

    assert Digits.of(Joins()) is None
