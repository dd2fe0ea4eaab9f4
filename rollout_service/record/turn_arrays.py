"""TurnArrays: what each turn of a batch did, as arrays, for credit per turn.

Invariant: an entry of every array describes the same turn. Turns are in the order of the batch's rows
(`rollout_service.record.batch`), and within a row in the order in which they were sampled. `padded` and `packed` bring
one value per turn to exactly the tokens that the turn sampled, where the loss mask of `TrajectoryBatch.padded` and
`packed` is 1.

    turns, arrays = batch.turn_arrays(), batch.padded()
    credit = 0.1 * np.maximum(turns.gold_actions, 0) - 0.05 * np.maximum(turns.refused_calls, 0)
    per_token = turns.padded(credit)  # [rows, L], aligned with arrays.loss_mask
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rollout_service.errors import ConfigError
from rollout_service.record.trajectory import TokenSegment, Trajectory, Turn
from rollout_service.record.turn_facts import OK
from rollout_service.redaction import shown

Int32 = npt.NDArray[np.int32]

UNKNOWN = -1
"""In place of a fact that is not known, which is not the same as 0."""

FACTS = ("calls", "malformed_calls", "valid_calls", "refused_calls", "wrote", "gold_actions", "communicated")
"""Names of the arrays of facts."""


def counts(turn: Turn) -> dict[str, int | None]:
    """The facts of a turn as numbers, by the names of `FACTS`; None: not known."""
    facts = turn.facts
    return {
        "calls": len(turn.tool_calls),
        "malformed_calls": sum(status != OK for status in turn.tool_calls),
        "valid_calls": facts.valid_calls,
        "refused_calls": facts.refused_calls,
        "wrote": None if facts.wrote is None else int(facts.wrote),
        "gold_actions": None if facts.gold_actions is None else len(facts.gold_actions),
        "communicated": None if facts.communicated is None else len(facts.communicated),
    }


def described(segment: TokenSegment, first: int = 0) -> list[dict[str, Any]]:
    """One dict per turn of the segment, for formats without an array for it: `start` and `end` of the turn's tokens,
    counted from the segment's token `first`, and its `counts`."""
    return [{"start": turn.start - first, "end": turn.end - first, **counts(turn)} for turn in segment.turns]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TurnArrays:
    """One entry per turn."""

    lengths: Int32
    """int32[rows]: number of tokens of each row. The only array with an entry per row."""
    row: Int32
    """int32[turns]: row of the turn in padded and packed batches."""
    number: Int32
    """int32[turns]: position of the turn within its row, from 0."""
    trajectory_index: Int32
    """int32[turns]: position in the batch of the turn's trajectory."""
    start: Int32
    """int32[turns]: position in the row of the first token that the turn sampled."""
    end: Int32
    """int32[turns]: one past the last one."""
    calls: Int32
    """int32[turns]: tool calls, malformed ones among them."""
    malformed_calls: Int32
    """int32[turns]: calls that could not be parsed."""
    valid_calls: Int32
    """int32[turns]: calls that the environment carried out; -1: not known."""
    refused_calls: Int32
    """int32[turns]: well-formed calls that it answered with an error; -1: not known."""
    wrote: Int32
    """int32[turns]: 1 if a call changed a database, else 0; -1: not known."""
    gold_actions: Int32
    """int32[turns]: actions of the task that the turn is the first to match; -1: not known."""
    communicated: Int32
    """int32[turns]: required texts that the turn is the first to say; -1: not known."""

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> TurnArrays:
        """The turns of the trajectories."""
        segments = [(index, segment) for index, each in enumerate(trajectories) for segment in each.segments]
        places = [
            (row, number, index, turn)
            for row, (index, segment) in enumerate(segments)
            for number, turn in enumerate(segment.turns)
        ]
        found = [counts(turn) for *_, turn in places]
        facts = {name: [UNKNOWN if each[name] is None else each[name] for each in found] for name in FACTS}
        return cls(
            lengths=_array(len(segment.token_ids) for _, segment in segments),
            row=_array(row for row, *_ in places),
            number=_array(number for _, number, *_ in places),
            trajectory_index=_array(index for _, _, index, _ in places),
            start=_array(turn.start for *_, turn in places),
            end=_array(turn.end for *_, turn in places),
            **{name: _array(values) for name, values in facts.items()},
        )

    def padded(self, values: npt.ArrayLike, filler: float = 0) -> npt.NDArray[Any]:
        """One value per turn, on each token that the turn sampled.

        Args:
            values: [turns], of any dtype.
            filler: value of all other positions.

        Returns:
            [rows, L] of the same dtype, aligned with `TrajectoryBatch.padded()`.

        Raises:
            ConfigError: `values` has not one entry per turn.
        """
        width = int(self.lengths.max(initial=0))
        return self._spread(values, self.row.astype(np.int64) * width, len(self.lengths) * width, filler).reshape(
            len(self.lengths), width
        )

    def packed(self, values: npt.ArrayLike, filler: float = 0) -> npt.NDArray[Any]:
        """As `padded`, but [total], aligned with `TrajectoryBatch.packed()`."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return self._spread(values, (ends - self.lengths)[self.row], int(ends[-1]) if len(ends) else 0, filler)

    def by_row(self, values: npt.ArrayLike, filler: float = 0) -> npt.NDArray[Any]:
        """One value per turn, as a rectangle: [rows, T], T being the most turns of a row. Turn k of a row stands in
        column k. Arguments and errors are those of `padded`."""
        given = self._checked(values)
        found = np.full((len(self.lengths), int(self.number.max(initial=-1)) + 1), filler, dtype=given.dtype)
        found[self.row, self.number] = given
        return found

    def _spread(
        self, values: npt.ArrayLike, offsets: npt.NDArray[np.int64], total: int, filler: float
    ) -> npt.NDArray[Any]:
        """The values on the turns' tokens in a flat array, in which the row of each turn begins at its offset."""
        given = self._checked(values)
        sampled = self.end - self.start
        first = offsets + self.start - (np.cumsum(sampled) - sampled)
        found = np.full(total, filler, dtype=given.dtype)
        found[np.repeat(first, sampled) + np.arange(int(sampled.sum()))] = np.repeat(given, sampled)
        return found

    def _checked(self, values: npt.ArrayLike) -> npt.NDArray[Any]:
        given = np.asarray(values)
        if given.shape != self.row.shape:
            raise ConfigError(
                f"values has the shape {given.shape}, and the batch has {len(self.row)} turns: {shown(values)}.",
                "Give one value per turn, in the order of the other arrays.",
            )
        return given


def _array(values: Any) -> Int32:
    return np.array(list(values), dtype=np.int32)
