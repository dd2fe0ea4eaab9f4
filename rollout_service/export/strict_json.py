"""JSON for other programs' readers.

Invariant: it is valid UTF-8, and every string in it is Unicode text. Half of a surrogate pair, which a policy can write
as an escape in a call's arguments, becomes U+FFFD: many readers refuse the whole file for it.
"""

from __future__ import annotations

import json
import re

from rollout_service.record.schema import shallow

_HALVES = re.compile("[\ud800-\udfff]")


def to_json(value: object) -> bytes:
    """JSON of plain values and dataclasses."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=shallow)
    return _HALVES.sub("\ufffd", text).encode()
