"""ToolTexts: the JSON texts that a chat template makes of the tools, which are the same in every prompt of a domain.

Invariant: a text is only used for tools with the same content, in the same order. They are found by their content, and
the template gets a copy of them that nobody else can reach and that a sandboxed template cannot change.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_MOST_SETS, _MOST_BYTES = 64, 1 << 20
"""Number of sets of tools whose texts are kept, and the size of the largest. A domain has one or two."""

_EXACT = 2
"""Version of the `marshal` format. Later ones depend on how often an object is referred to."""


class ToolTexts:
    """Keeps what `to_json` makes of tools and of their parts. Thread-safe."""

    def __init__(self, to_json: Callable[..., str]) -> None:
        """
        Args:
            to_json: a pure function, such as the filter `tojson` of chat templates.
        """
        self._to_json = to_json
        self._kept: dict[bytes, list[Any]] = {}
        self._parts: set[int] = set()
        """Identities of the kept tools' dicts and lists. These live as long as this object."""
        self._texts: dict[tuple[int, str], str] = {}

    def own(self, tools: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Equal tools, whose texts are kept; or the same, if theirs cannot be."""
        try:
            key = marshal.dumps(list(tools), _EXACT)
        except ValueError:  # something else than plain JSON values
            return tools
        if key not in self._kept:
            if len(self._kept) >= _MOST_SETS or len(key) > _MOST_BYTES:
                return tools
            copied = marshal.loads(key)
            if not _is_json(copied):  # numbers and arrays of NumPy come back as bytes
                return tools
            # Another thread may have come first. Only the parts that are kept may be known by their identity.
            self._parts.update(map(id, _parts(self._kept.setdefault(key, copied))))
        return self._kept[key]

    def to_json(self, value: Any, *args: Any, **options: Any) -> str:
        """As the function that was given."""
        if id(value) not in self._parts:
            return self._to_json(value, *args, **options)
        key = id(value), repr((args, options))
        if key not in self._texts:
            self._texts[key] = self._to_json(value, *args, **options)
        return self._texts[key]


def _is_json(value: Any) -> bool:
    """Whether the value is made of plain JSON values only."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float)


def _parts(value: Any) -> Iterator[Any]:
    """The value and what it holds, as far as these are dicts and lists."""
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _parts(item)
