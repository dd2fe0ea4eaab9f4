"""The first difference between a request and the one on the tape that is nearest to it, in words.

Invariant: it only compares and writes. The text is one line, and shows at most some 60 characters of each side.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rollout_service.tape.request import ModelRequest, common

_AROUND = 30
"""Characters that are shown on each side of the first one that differs."""


def nearest(asked: ModelRequest, recorded: Iterable[ModelRequest]) -> ModelRequest | None:
    """The recorded request with most in common: settings, then the messages from the first on. None: there is none."""
    return max(recorded, key=lambda other: _likeness(asked, other), default=None)


def _likeness(one: ModelRequest, other: ModelRequest) -> tuple[int, bool, int, bool, bool, int]:
    same = common(one.messages, other.messages)
    texts = [_text(each.messages[same]) if same < len(each.messages) else "" for each in (one, other)]
    alike = one.parameters == other.parameters, one.tools == other.tools
    longer = abs(len(one.messages) - len(other.messages))
    return same, one.model == other.model, _common_text(*texts), *alike, -longer


def first_difference(recorded: ModelRequest, asked: ModelRequest) -> str | None:
    """Where the requests first differ, and what each says there. None: they are equal."""
    if recorded.model != asked.model:
        return _both("model", recorded.model, asked.model)
    for name in sorted(recorded.parameters.keys() | asked.parameters.keys()):
        if recorded.parameters.get(name) != asked.parameters.get(name):
            return _both(f"parameter {name}", recorded.parameters.get(name), asked.parameters.get(name))
    at = common(recorded.messages, asked.messages)
    if at < len(recorded.messages) and at < len(asked.messages):
        ours, theirs = asked.messages[at], recorded.messages[at]
        fields = sorted(ours.keys() | theirs.keys(), key=lambda field: (field != "role", field))
        field = next(field for field in fields if ours.get(field) != theirs.get(field))
        return _both(f"message {at} ({ours.get('role')}), {field}", theirs.get(field), ours.get(field))
    if len(recorded.messages) != len(asked.messages):
        return f"number of messages: recorded {len(recorded.messages)}, asked {len(asked.messages)}"
    return _tools(recorded.tools or [], asked.tools or [])


def _tools(recorded: list[dict[str, Any]], asked: list[dict[str, Any]]) -> str | None:
    if recorded == asked:
        return None
    at = common(recorded, asked)
    sides = [side[at] if at < len(side) else None for side in (recorded, asked)]
    return _both(f"tool {at}", *sides)


def _both(where: str, recorded: Any, asked: Any) -> str:
    texts = _text(recorded), _text(asked)
    at = _common_text(*texts)
    shown = [_cut(text, at) for text in texts]
    return f"{where}: recorded {shown[0]}, asked {shown[1]}"


def _common_text(one: str, other: str) -> int:
    return common(list(one), list(other))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _cut(text: str, at: int) -> str:
    start, end = max(0, at - _AROUND), at + _AROUND
    inner = " ".join(text[start:end].split())
    return f'"{"…" if start else ""}{inner}{"…" if end < len(text) else ""}"'
