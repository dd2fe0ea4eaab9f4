"""Results that were lent to a reader, kept until the reader's process has let go of them.

Invariant: the coordinator lets go of a trajectory's object after its reader. If a borrower is the last one that lets go
of a small object, Ray leaves the object in its owner's memory for good (seen with Ray 2.60, in all of 600 cases).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import Any

_SECONDS = 5.0
"""A reader lets go of a group when it hands it over, and tells the owner of that within milliseconds."""


def keep_for_a_while(results: MutableMapping[int, Any]) -> None:
    """Empty the mapping, which nobody uses any more, when the reader has let go of what is in it."""
    with contextlib.suppress(RuntimeError):  # no event loop runs, so nothing was lent
        asyncio.get_running_loop().call_later(_SECONDS, results.clear)
