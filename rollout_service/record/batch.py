"""TrajectoryBatch: trajectories as arrays for a training step.

Invariant: a row is a segment, and nothing is cut. Rows are in the order of the trajectories, and within a trajectory in
the order of its segments. Every token of every segment occurs exactly once. A trajectory without segments has no row.

A trajectory with several segments (of a template that rewrites history) gives several rows with the same reward. A loss
that counts every trajectory once must weight the rows by `trajectory_index`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

import rollout_service.config.arguments as arguments
import rollout_service.record.storage as storage
from rollout_service.errors import ConfigError, RolloutError
from rollout_service.record.trajectory import CONTEXT_VERSION, Outcome, TokenSegment, Trajectory
from rollout_service.record.turn_arrays import TurnArrays
from rollout_service.redaction import shown

if TYPE_CHECKING:
    import torch

Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Rows:
    """What padded and packed batches share: one entry per row."""

    lengths: Int32
    """int32[rows]: number of tokens in the row."""
    trajectory_index: Int32
    """int32[rows]: position in the batch of the row's trajectory."""
    group_index: Int32
    """int32[rows]: number of the trajectory's group, from 0 in order of first appearance in the batch."""
    rewards: Float32
    """float32[rows]: reward of the trajectory; NaN if it was not scored."""
    oldest_versions: Int32
    """int32[rows]: oldest weight version in the row, see `TokenSegment.oldest_version`; -1 if nothing was sampled.
    It is below all of `weight_versions` if tokens were sampled over keys and values of older weights."""

    def to_torch(self) -> dict[str, torch.Tensor]:
        """Every array as a CPU tensor of the same dtype, by name. It shares the array's memory if that is writable.

        Raises:
            ConfigError: torch is not installed.
        """
        try:
            import torch
        except ImportError as error:
            raise ConfigError(
                "to_torch() needs torch, which is not installed.", 'Run: pip install "tau2-rollout-service[torch]"'
            ) from error
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        # Arrays from Ray's object store are read-only, which a tensor cannot be.
        return {name: torch.from_numpy(a if a.flags.writeable else a.copy()) for name, a in arrays.items()}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PaddedBatch(_Rows):
    """One row per segment, padded on the right to L, the length of the longest."""

    token_ids: Int32
    """int32[rows, L]."""
    attention_mask: UInt8
    """uint8[rows, L]: 1 on tokens, 0 on padding."""
    loss_mask: UInt8
    """uint8[rows, L]: 1 exactly on tokens that the policy sampled; 0 on context and padding."""
    logprobs: Float32
    """float32[rows, L]: the engine's; 0.0 where the loss mask is 0."""
    weight_versions: Int32
    """int32[rows, L]: -1 where the loss mask is 0."""
    position_ids: Int32
    """int32[rows, L]: 0, 1, 2, ... on tokens; 0 on padding."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PackedBatch(_Rows):
    """All rows end to end. Row i is `[cu_seqlens[i]:cu_seqlens[i + 1]]` of each flat array."""

    token_ids: Int32
    """int32[total]."""
    loss_mask: UInt8
    """uint8[total]: 1 exactly on tokens that the policy sampled."""
    logprobs: Float32
    """float32[total]: the engine's; 0.0 where the loss mask is 0."""
    weight_versions: Int32
    """int32[total]: -1 where the loss mask is 0."""
    position_ids: Int32
    """int32[total]: starts again at 0 with each row."""
    cu_seqlens: Int32
    """int32[rows + 1]: start of each row, then the total, as variable-length attention kernels expect it."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupStatistics:
    """Statistics of each trajectory's group, over scored members only, for group-relative advantages."""

    mean: Float32
    """float32[n]: mean reward; NaN if no member was scored."""
    std: Float32
    """float32[n]: population standard deviation (divisor `scored`); NaN if no member was scored."""
    scored: Int32
    """int32[n]: number of scored members."""


class TrajectoryBatch(Sequence[Trajectory]):
    """Trajectories, in order of arrival."""

    def __init__(self, trajectories: Iterable[Trajectory]) -> None:
        """
        Raises:
            ConfigError: an item is not a trajectory.
        """
        self.trajectories = _listed(trajectories)

    def __len__(self) -> int:
        return len(self.trajectories)

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> TrajectoryBatch: ...
    def __getitem__(self, index: int | slice) -> Trajectory | TrajectoryBatch:
        if isinstance(index, slice):
            return TrajectoryBatch(self.trajectories[index])
        return self.trajectories[index]

    def __iter__(self) -> Iterator[Trajectory]:
        return iter(self.trajectories)

    def __repr__(self) -> str:
        return f"TrajectoryBatch({len(self)} trajectories, {len(self.groups())} groups)"

    @classmethod
    def load(cls, path: str | Path) -> TrajectoryBatch:
        """The trajectories of `path`, see `rollout_service.record.storage.read`."""
        return cls(storage.read(path))

    def save(self, path: str | Path) -> None:
        """Write the trajectories to `path`, which must not exist yet, see `rollout_service.record.storage.write`."""
        storage.write(path, self.trajectories)

    def filter(self, predicate: Callable[[Trajectory], bool]) -> TrajectoryBatch:
        """The trajectories for which `predicate` holds.

        Raises:
            ConfigError: it cannot be called.
        """
        if not callable(predicate):
            raise ConfigError(f"predicate is {shown(predicate)}.", "Give a function of a trajectory.")
        return TrajectoryBatch(filter(predicate, self.trajectories))

    def groups(self) -> dict[str, list[Trajectory]]:
        """Trajectories by `group_id`, in order of first appearance; within a group by `sample_index`."""
        groups: dict[str, list[Trajectory]] = {}
        for trajectory in self.trajectories:
            groups.setdefault(trajectory.group_id, []).append(trajectory)
        return {name: sorted(members, key=lambda member: member.sample_index) for name, members in groups.items()}

    @property
    def rewards(self) -> Float32:
        """float32[n]: NaN where a trajectory was not scored (`Trajectory.is_scored`), which is not the same as 0."""
        return np.array([t.reward if t.is_scored else np.nan for t in self.trajectories], dtype=np.float32)

    def group_statistics(self) -> GroupStatistics:
        """Mean and deviation of each trajectory's group, aligned with the batch.

        For the deviation with divisor `scored - 1`, use `std * sqrt(scored / (scored - 1))`.
        """
        group = self._group_index()
        rewards = self.rewards.astype(np.float64)
        is_scored = ~np.isnan(rewards)
        known = np.where(is_scored, rewards, 0.0)
        scored = np.bincount(group, weights=is_scored)
        with np.errstate(invalid="ignore"):  # 0 / 0: a group without a score has no mean
            mean = np.bincount(group, weights=known) / scored
            deviation = np.where(is_scored, rewards - mean[group], 0.0)
            std = np.sqrt(np.bincount(group, weights=deviation**2) / scored)
        return GroupStatistics(
            mean=mean[group].astype(np.float32),
            std=std[group].astype(np.float32),
            scored=scored[group].astype(np.int32),
        )

    def advantages(self, *, scale: bool = True, epsilon: float = 1e-6) -> Float32:
        """GRPO's advantage of each trajectory: its reward minus its group's mean. A trajectory counts once, with any
        number of segments. Groups must be whole, or the mean is not theirs.

        Args:
            scale: divide by the group's deviation plus `epsilon`. False gives the advantage of Dr. GRPO.

        Returns:
            float32[n]: NaN where a trajectory was not scored.

        Raises:
            ConfigError: `scale` is not a truth value, or `epsilon` is outside 1e-12 to 1.
        """
        arguments.truth("scale", scale)
        epsilon = arguments.number("epsilon", epsilon, 1e-12, 1.0)  # not 0 in float32, and below the rewards' size
        statistics = self.group_statistics()
        centred = self.rewards - statistics.mean
        return centred / (statistics.std + np.float32(epsilon)) if scale else centred

    def padded(self, pad_token_id: int = 0, max_length: int | None = None) -> PaddedBatch:
        """The batch as rectangular arrays, padded on the right.

        Args:
            pad_token_id: token that fills up `token_ids`.
            max_length: longest row that the trainer accepts. Rows are not padded to it.

        Raises:
            ConfigError: a segment is longer than `max_length`, or `pad_token_id` is not a token id. A long segment is
                not cut here, because that would train on half a conversation.
        """
        pad_token_id = arguments.whole("pad_token_id", pad_token_id, 0, arguments.MOST_TOKEN_ID)
        segments = self._segments()
        if max_length is not None:
            self._check_lengths(max_length)
        shape = len(segments), max((len(segment.token_ids) for segment in segments), default=0)
        token_ids = np.full(shape, pad_token_id, dtype=np.int32)
        loss_mask = np.zeros(shape, dtype=np.uint8)
        logprobs = np.zeros(shape, dtype=np.float32)
        weight_versions = np.full(shape, CONTEXT_VERSION, dtype=np.int32)
        for row, segment in enumerate(segments):
            span = row, slice(len(segment.token_ids))
            token_ids[span] = segment.token_ids
            loss_mask[span] = segment.loss_mask
            logprobs[span] = segment.logprobs
            weight_versions[span] = segment.weight_versions
        shared = self._rows()
        positions = np.arange(shape[1], dtype=np.int32)
        attention_mask = (positions < shared["lengths"][:, None]).astype(np.uint8)
        return PaddedBatch(
            token_ids=token_ids,
            attention_mask=attention_mask,
            loss_mask=loss_mask,
            logprobs=logprobs,
            weight_versions=weight_versions,
            position_ids=positions * attention_mask,
            **shared,
        )

    def packed(self, max_length: int | None = None) -> PackedBatch:
        """The batch without padding, rows end to end. `max_length` and errors are as in `padded`."""
        segments = self._segments()
        if max_length is not None:
            self._check_lengths(max_length)
        shared = self._rows()
        ends = np.cumsum(shared["lengths"], dtype=np.int32)
        cu_seqlens = np.concatenate([np.zeros(1, np.int32), ends])
        starts = np.repeat(cu_seqlens[:-1], shared["lengths"])
        return PackedBatch(
            token_ids=_concatenate([segment.token_ids for segment in segments], np.int32),
            loss_mask=_concatenate([segment.loss_mask for segment in segments], np.uint8),
            logprobs=_concatenate([segment.logprobs for segment in segments], np.float32),
            weight_versions=_concatenate([segment.weight_versions for segment in segments], np.int32),
            position_ids=np.arange(cu_seqlens[-1], dtype=np.int32) - starts,
            cu_seqlens=cu_seqlens,
            **shared,
        )

    def turn_arrays(self) -> TurnArrays:
        """What each turn did, as arrays with one entry per turn, for credit per turn."""
        return TurnArrays.of(self.trajectories)

    def _segments(self) -> list[TokenSegment]:
        return [segment for trajectory in self.trajectories for segment in trajectory.segments]

    def _group_index(self) -> Int32:
        """int32[n]: number of each trajectory's group."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(t.group_id, len(numbers)) for t in self.trajectories], dtype=np.int32)

    def _rows(self) -> dict[str, Any]:
        """The fields of `_Rows`."""
        counts = np.array([len(trajectory.segments) for trajectory in self.trajectories], dtype=np.int64)
        index = np.repeat(np.arange(len(self), dtype=np.int32), counts)
        return {
            "lengths": np.array([len(segment.token_ids) for segment in self._segments()], dtype=np.int32),
            "trajectory_index": index,
            "group_index": self._group_index()[index],
            "rewards": self.rewards[index],
            "oldest_versions": np.array([_or_context(s.oldest_version) for s in self._segments()], dtype=np.int32),
        }

    def _check_lengths(self, max_length: int) -> None:
        arguments.whole("max_length", max_length, 1)
        for trajectory in self.trajectories:
            longest = max((len(segment.token_ids) for segment in trajectory.segments), default=0)
            if longest > max_length:
                raise ConfigError(
                    f"Trajectory {trajectory.trajectory_id!r} has a segment of {longest} tokens, more than "
                    f"max_length={max_length}.",
                    "Raise max_length, bound the episodes' context length, or drop it first with batch.filter(...).",
                )


def _or_context(version: int | None) -> int:
    return CONTEXT_VERSION if version is None else version


def _listed(trajectories: Any) -> list[Trajectory]:
    if isinstance(trajectories, Iterable) and not isinstance(trajectories, (str, bytes)):
        found = list(trajectories)
        strange = [item for item in found if not isinstance(item, Trajectory)]
        if not strange:
            return found
        trajectories = strange[0]
    problem = f"trajectories: {shown(trajectories)} is no trajectory."
    raise ConfigError(problem, "Give those of client.collect().")


def _concatenate(arrays: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])


class IncompleteCollection(RolloutError):
    """A collection did not come back whole. `batch` holds the trajectories that ended, `failures` the aborted ones, and
    `missing` is the number of episodes of which nothing came. `withheld` holds trajectories that ended, of groups that
    are no data because too few of their trajectories have a score (`service.min_group_size`)."""

    def __init__(
        self,
        batch: TrajectoryBatch,
        failures: list[Trajectory],
        missing: int = 0,
        reason: str = "",
        withheld: Sequence[Trajectory] = (),
    ) -> None:
        total = len(batch) + len(failures) + len(withheld) + missing
        faults = sorted({f"{t.fault.kind}: {t.fault.message}" for t in failures if t.fault is not None})
        parts = [f"{len(failures)} of {total} episodes failed after all attempts ({'; '.join(faults[:3])})."]
        if withheld:
            parts.append(f"{len(withheld)} of {total} are in groups with too few scored ones (min_group_size).")
        if missing:
            parts.append(f"{missing} of {total} episodes never came{': ' + reason if reason else '.'}")
        kinds = sorted({t.fault.kind for t in failures if t.fault is not None})
        where = "What came is in .batch; .failures has each fault." if failures else "What came is in .batch."
        remedy = " ".join([*(kind.remedy for kind in kinds), where])
        super().__init__(" ".join(parts[not failures :]), remedy)
        self.batch = batch
        self.failures = failures
        self.missing = missing
        self.reason = reason
        self.withheld = list(withheld)

    @classmethod
    def of(
        cls, came: Sequence[Trajectory], episodes: int, reason: str = "", withheld: Sequence[Trajectory] = ()
    ) -> IncompleteCollection:
        """What is said of a collection of so many episodes, of which these trajectories came, some of them withheld."""
        failures = [t for t in (*came, *withheld) if t.outcome is Outcome.ABORTED]
        batch = TrajectoryBatch([t for t in came if t.outcome is not Outcome.ABORTED])
        kept = [t for t in withheld if t.outcome is not Outcome.ABORTED]
        return cls(batch, failures, episodes - len(came) - len(withheld), reason, kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.batch, self.failures, self.missing, self.reason, self.withheld)
