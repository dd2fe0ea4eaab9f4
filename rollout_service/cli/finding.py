"""Finding: what one check of `doctor` found.

Invariant: making one never raises, and its text holds no secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rollout_service.errors import RolloutError
from rollout_service.redaction import redact


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool | None
    """None: it was not checked."""
    text: str


class NotChecked(Exception):
    """What cannot be told from here. The text says how it can be found out."""


def finding(what: str, check: Callable[[], str]) -> Finding:
    """What a check found: the text that it returns, or why it failed or was not made."""
    try:
        return Finding(what, True, redact(check()))
    except NotChecked as reason:
        return Finding(what, None, redact(str(reason)))
    except RolloutError as error:
        return Finding(what, False, str(error))
    except Exception as error:
        return Finding(what, False, redact(f"{type(error).__name__}: {error}"))
