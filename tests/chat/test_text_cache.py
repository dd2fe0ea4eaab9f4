"""The cache of recurring texts holds no more bytes than it may, and never another text's tokens."""

from __future__ import annotations

import sys
from array import array

from hypothesis import given
from hypothesis import strategies as st

from rollout_service.chat.text_cache import TextCache


def encode(text: str) -> array[int]:
    return array("i", map(ord, text))


def size(text: str) -> int:
    return sys.getsizeof(text) + sys.getsizeof(encode(text))


@given(texts=st.lists(st.integers(0, 12).map(lambda n: chr(97 + n) * n * 50), max_size=60), limit=st.integers(0, 8000))
def test_it_never_holds_more_than_its_limit_and_gives_every_text_its_own_tokens(texts: list[str], limit: int):
    cache = TextCache(encode, limit)
    for text in texts:
        assert cache(text) == encode(text)
        assert cache.size <= limit
        assert cache.size == sum(map(size, cache._kept))


def test_what_was_used_longest_ago_goes_first_and_what_is_too_large_is_not_kept():
    encoded = []

    def counted(text: str) -> array[int]:
        encoded.append(text)
        return encode(text)

    cache = TextCache(counted, 2 * size("a" * 100) + size("c"))
    for text in ("a" * 100, "b" * 100, "a" * 100, "x" * 10_000, "c" * 100, "a" * 100, "b" * 100, "x" * 10_000):
        cache(text)
    assert [text[0] for text in encoded] == ["a", "b", "x", "c", "b", "x"]
