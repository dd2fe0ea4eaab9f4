"""Text of trajectories on a terminal.

Invariant: no text moves the cursor, colours what follows or changes its direction, and none is taken for rich's markup.
"""

from __future__ import annotations

import unicodedata

from rich.text import Text

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of characters that are written as escapes: controls, formats such as directions, surrogates, line ends."""


def plain(text: str) -> Text:
    """The text with control characters written as escapes."""
    return Text("".join(_escape(each) if unicodedata.category(each) in _ESCAPED else each for each in text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
