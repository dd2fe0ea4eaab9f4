"""Facts per turn in the plain form in which trainers without an array for them carry them beside a sample.

Invariant: nothing of it is part of a reward. Positions count from the first token of the response, as the loss masks of
these trainers do.
"""

from __future__ import annotations

from typing import Any

from rollout_service.record.trajectory import TokenSegment
from rollout_service.record.turn_arrays import counts


def of_response(segment: TokenSegment) -> list[dict[str, Any]]:
    """One dict per turn of the segment: `start` and `end` of its tokens in the response, and its facts as numbers, see
    `rollout_service.record.turn_arrays.FACTS`. A fact that is not known is None."""
    first = segment.prompt_length
    return [{"start": turn.start - first, "end": turn.end - first, **counts(turn)} for turn in segment.turns]
