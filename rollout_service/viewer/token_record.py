"""Token record: a trajectory's segments as the page holds them.

Invariant: the page can give back every array as it was, but for log-probs, which are rounded to five decimals. Arrays
of unequal length, which `verify` reports, are held as they are.

Prompts of one domain begin alike and are long. Their common beginning, a head, is held once for all episodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rollout_service.record.trajectory import TokenSegment, Trajectory


class Heads:
    """Beginnings that segments share: the first prompt of each kind of episode."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, ...], int] = {}
        self.all: list[npt.NDArray[np.int32]] = []

    def shared(self, trajectory: Trajectory, segment: TokenSegment) -> tuple[int, int]:
        """The head of the trajectory's kind, and with how many of its tokens the segment begins."""
        made = trajectory.provenance
        kind = (
            trajectory.task.domain,
            made.agent,
            made.tokenizer_fingerprint,
            made.template_fingerprint,
            made.template_date,
        )
        if kind not in self._places:
            self._places[kind] = len(self.all)
            self.all.append(segment.token_ids[: max(segment.prompt_length, 0)].copy())
        place = self._places[kind]
        head = self.all[place]
        n = min(len(head), len(segment.token_ids))
        differing = np.flatnonzero(head[:n] != segment.token_ids[:n])
        return place, int(differing[0]) if len(differing) else n


def token_record(trajectory: Trajectory, heads: Heads) -> list[dict[str, Any]]:
    """The segments: `head` and `shared` with the `ids` that follow; runs of equal mask and of equal weight version, as
    values and lengths in turn; and the log-probs that are not 0."""
    return [_segment(trajectory, segment, heads) for segment in trajectory.segments]


def _segment(trajectory: Trajectory, segment: TokenSegment, heads: Heads) -> dict[str, Any]:
    head, shared = heads.shared(trajectory, segment)
    has_logprob = segment.logprobs != 0
    return {
        "head": head,
        "shared": shared,
        "ids": segment.token_ids[shared:].tolist(),
        "prompt": segment.prompt_length,
        "mask": _runs(segment.loss_mask),
        "versions": _runs(segment.weight_versions),
        "logprobs": [round(float(value), 5) for value in segment.logprobs[has_logprob]],
        "logprobAt": _runs(has_logprob),
    }


def _runs(values: npt.NDArray[Any]) -> list[int]:
    """Each run of equal values: the value and its length, one after the other."""
    if not len(values):
        return []
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    lengths = np.diff(np.append(starts, len(values)))
    return np.stack([values[starts].astype(np.int64), lengths], axis=1).ravel().tolist()
