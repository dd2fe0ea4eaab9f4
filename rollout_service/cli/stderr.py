"""What a command says beside its results.

Invariant: it goes to stderr, without secrets.
"""

from __future__ import annotations

import sys

from rollout_service.redaction import redact


def say(text: str) -> None:
    """Print a line on stderr."""
    print(redact(text), file=sys.stderr, flush=True)
