"""Text of trajectories on a terminal.

Invariant: none of it is taken for rich's markup or for a terminal's own codes.
"""

from __future__ import annotations

from rich.text import Text

from rollout_service.report.visible_text import visible


def plain(text: str) -> Text:
    """The text with control characters written as escapes."""
    return Text(visible(text))
