"""TextCache: keeps the tokens of texts that come again, above all a domain's long system prompt.

Invariant: it never holds more than `limit` bytes. The least recently used text is dropped first. A text that is larger
than the whole cache is not kept.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable


class TextCache:
    """Caches the results of `encode`. Thread-safe. Two threads that ask for a new text at once may both encode it."""

    def __init__(self, encode: Callable[[str], array[int]], limit: int) -> None:
        """
        Args:
            encode: gives the token ids of a text.
            limit: most bytes of texts and tokens together.
        """
        self._encode = encode
        self._limit = limit
        self._kept: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = threading.Lock()
        self.size = 0
        """Bytes held now."""

    def __call__(self, text: str) -> array[int]:
        """Token ids of the text; do not change them."""
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        tokens = self._encode(text)
        if _bytes(text, tokens) <= self._limit:
            self._keep(text, tokens)
        return tokens

    def _keep(self, text: str, tokens: array[int]) -> None:
        with self._lock:
            if text in self._kept:
                return
            self._kept[text] = tokens
            self.size += _bytes(text, tokens)
            while self.size > self._limit:
                self.size -= _bytes(*self._kept.popitem(last=False))


def _bytes(text: str, tokens: array[int]) -> int:
    return sys.getsizeof(text) + sys.getsizeof(tokens)
