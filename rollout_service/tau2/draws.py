"""Draws: makes the random ids that τ²'s tools draw depend only on the calls that draw them.

Invariant: the same calls in the same order draw the same ids, in play, in evaluation and in a replay. Only telecom's
`refuel_data` draws one: a customer without a draft bill gets a bill with a new id.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Draws:
    """The ids drawn in one environment."""

    def __init__(self) -> None:
        self._count = 0

    @contextmanager
    def of(self, *cause: str) -> Iterator[None]:
        """Within this context, an id follows from `cause` and from the number of ids drawn before. A nested context
        changes nothing."""
        token = _current.set(_current.get() or (self, cause))
        try:
            yield
        finally:
            _current.reset(token)

    def draw(self, cause: tuple[str, ...]) -> uuid.UUID:
        """The next id."""
        self._count += 1
        text = json.dumps([*cause, self._count])
        return uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4)


_current: ContextVar[tuple[Draws, tuple[str, ...]] | None] = ContextVar("draws", default=None)


def uuid4() -> uuid.UUID:
    """Replaces `uuid.uuid4` in τ²'s tools."""
    current = _current.get()
    if current is None:
        return uuid.uuid4()
    draws, cause = current
    return draws.draw(cause)
