"""Text of trajectories as a reader may see it.

Invariant: no character moves the cursor of a terminal, changes the direction of what follows, or is not seen.
"""

from __future__ import annotations

import unicodedata

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of characters that are written as escapes: controls, formats such as directions, surrogates, line ends."""


def visible(text: str) -> str:
    """The text with control characters written as escapes."""
    return "".join(_escape(each) if unicodedata.category(each) in _ESCAPED else each for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
