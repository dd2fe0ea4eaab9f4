"""How a sampler's state is read: plain values that a trainer may have kept in a file.

Invariant: a state is used only by a sampler of the kind that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rollout_service.config.arguments as arguments
from rollout_service.errors import TaskError
from rollout_service.redaction import shown

MOST_DRAWS = 10_000_000
"""Most draws that a state may tell of. A uniform sampler of a mix repeats them."""

REMEDY = "Give what sampler_state() returned, unchanged, to a collection of the same sampler; or leave it out."


def checked(state: Any, kind: str) -> int:
    """Check that a sampler of this kind wrote the state, and return the number of tasks that it had drawn.

    Raises:
        TaskError: it did not.
    """
    if not isinstance(state, Mapping) or "sampler" not in state:
        raise TaskError(f"sampler_state is {shown(state)}, not the state of a sampler.", REMEDY)
    if state["sampler"] != kind:
        raise TaskError(f"sampler_state is that of sampler {shown(state['sampler'])}, not of {kind}.", REMEDY)
    return arguments.whole("drawn in sampler_state", state.get("drawn"), 0, MOST_DRAWS, TaskError)
