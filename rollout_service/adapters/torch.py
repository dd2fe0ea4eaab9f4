"""Plain torch: groups from the service as a dataset, trajectories as tensors for a policy-gradient loss.

Invariant: what a loss reads is aligned with what the model predicts. Entry i of `target_ids`, `loss_mask`,
`old_logprobs` and `weight_versions` belongs to the token that `logits[i]` predicts, which follows `input_ids[i]`. So

    logprobs = (logits / temperature).log_softmax(-1).gather(-1, target_ids[..., None])[..., 0]
    ratio = (logprobs - old_logprobs).exp()

needs no further shift, padded or packed. `temperature` is that of `policy.sampling`, the same for the whole batch. The
last token of a row predicts nothing, so its loss mask is 0.

    dataset = TrajectoryDataset(client, 256, group_size=8, domain="retail", split="train")
    collate = functools.partial(collate_padded, pad_token_id=tokenizer.pad_token_id, group_size=8)
    for tensors in DataLoader(dataset, batch_size=4, collate_fn=collate):  # 4 groups, 32 trajectories
        ...

Copies: a trajectory's arrays are views of Ray's object store, which is read-only, and torch has no read-only tensors.
So assembling the batch copies them once. Token ids are also widened to int64, because torch indexes only with that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from rollout_service.adapters import checks
from rollout_service.adapters.checks import Unscored
from rollout_service.errors import ConfigError
from rollout_service.record.batch import PackedBatch, PaddedBatch, TrajectoryBatch
from rollout_service.record.trajectory import CONTEXT_VERSION, Trajectory
from rollout_service.record.turn_arrays import FACTS, UNKNOWN, TurnArrays
from rollout_service.redaction import shown

if TYPE_CHECKING:
    import torch

    from rollout_service.client import RolloutClient

try:
    from torch.utils.data import IterableDataset, get_worker_info
except ImportError:  # the dataset is then a plain iterable, which needs no torch
    IterableDataset = object

    def get_worker_info() -> None:
        """Without torch there are no workers."""


class TrajectoryDataset(IterableDataset):  # type: ignore[misc]  # torch's classes are Any to mypy here
    """Groups as they complete, each a list of trajectories by sample index. Each pass asks for a new collection. A pass
    that ends early cancels the rest of it."""

    def __init__(self, client: RolloutClient, n: int | None = None, *, group_size: int = 1, **selection: Any) -> None:
        """
        Args:
            client: the client to collect with. The other arguments are those of its `stream`.
        """
        self._client = client
        self._arguments: dict[str, Any] = {"n": n, "group_size": group_size, **selection}

    def __iter__(self) -> Iterator[list[Trajectory]]:
        """
        Raises:
            ConfigError: it runs in a worker of a DataLoader.
        """
        if get_worker_info() is not None:
            raise ConfigError(
                "DataLoader: num_workers is above 0, and each worker would ask for all of the collection.",
                "Set num_workers=0. The service makes the episodes elsewhere, so a worker has nothing to do.",
            )
        with contextlib.closing(self._client.stream(**self._arguments)) as stream:
            yield from stream


class Admission(TypedDict, total=False):
    """What a batch must satisfy: keyword arguments that both kinds of batch take."""

    group_size: int | None
    """See `checks.check_groups`. None, the default: groups may be of any size."""
    unscored: Unscored
    """What to do with a trajectory without a reward; `refuse` by default."""
    tokenizer_fingerprint: str | None
    """Fingerprint of the trainer's tokenizer, see `checks.tokenizer_fingerprint`. None, the default: not compared."""
    vocabulary_size: int | None
    """Rows of the trained model's embedding. None, the default: as many as the tokenizer has ids."""


def collate_padded(
    items: Iterable[Trajectory | Sequence[Trajectory]],
    pad_token_id: int,
    max_length: int | None = None,
    *,
    scale: bool = True,
    turn_facts: bool = False,
    **admission: Unpack[Admission],
) -> dict[str, torch.Tensor]:
    """Trajectories as rectangular tensors, one row per segment, padded on the right to L, the longest row.

    Args:
        items: trajectories, or groups of them.
        max_length: longest row that the trainer accepts. A longer one is an error; nothing is cut.
        scale: divide advantages by their group's deviation, see `TrajectoryBatch.advantages`.
        turn_facts: also give what each turn did, for credit per turn. The advantages know nothing of it.
        admission: see `Admission`.

    Returns:
        CPU tensors by name, all writable.

        * `input_ids`, `position_ids`, `attention_mask`: int64[rows, L]
        * `target_ids`: int64[rows, L], the next token; `pad_token_id` if there is none
        * `loss_mask`: bool[rows, L], whether the policy sampled that token
        * `old_logprobs`: float32[rows, L], its log-prob; 0 where the loss mask is 0
        * `weight_versions`: int32[rows, L], version of the weights that sampled it; -1 where the loss mask is 0
        * `advantages`, `rewards`: float32[rows]; an unscored row has advantage 0 and reward NaN
        * `oldest_versions`: int32[rows], oldest weights in the row, see `TokenSegment.oldest_version`; -1 for none
        * `lengths`, `trajectory_index`, `group_index`: int64[rows]. A trajectory with several segments has several
          rows with the same advantage. A loss that averages over trajectories must use `trajectory_index`.
        * with `turn_facts`, `turn_index`: int64[rows, L], the turn of its row that sampled the token, from 0; -1 where
          the loss mask is 0. And int64[rows, T] for each of `turn_arrays.FACTS`, with T the most turns of a row, such
          as `turn_gold_actions`: the turn's fact; -1 where it is not known, or where the row has no such turn

    Raises:
        TrainingDataError: a missing reward or log-prob, a group that is not whole, mixed tokenizers, a token id for
            which the model has no row, or sampling without importance ratios, see `checks.check_sampling`.
        ConfigError: a segment is longer than `max_length`, or torch is not installed.
    """
    batch = _admitted(items, **admission)
    arrays = batch.padded(pad_token_id, max_length)
    scored = ~np.isnan(arrays.rewards)[:, None]
    tensors = _tensors(batch, arrays, scale) | {
        "attention_mask": _tensor(arrays.attention_mask, np.int64),
        **_predicted(arrays, scored, (..., slice(-1, None)), pad_token_id),
    }
    if turn_facts:
        turns = batch.turn_arrays()
        index = _moved(turns.padded(turns.number, -1), (..., slice(-1, None)), -1)
        tensors |= _turns(turns, index, tensors["loss_mask"], lambda fact: turns.by_row(fact, UNKNOWN))
    return tensors


def collate_packed(
    items: Iterable[Trajectory | Sequence[Trajectory]],
    max_length: int | None = None,
    *,
    scale: bool = True,
    turn_facts: bool = False,
    **admission: Unpack[Admission],
) -> dict[str, torch.Tensor]:
    """Trajectories end to end, without padding. Arguments and errors are those of `collate_padded`.

    Returns:
        As `collate_padded`, with [total] for [rows, L] and 0 for `pad_token_id`. Instead of `attention_mask`:

        * `cu_seqlens`: int32[rows + 1], start of each row, then the total, as variable-length attention expects it
        * `row_index`: int64[total], the row of each token; `advantages[row_index]` is per token

        With `turn_facts`, `turn_index` int64[total] counts the turns of all rows, and the facts are int64[turns].
    """
    batch = _admitted(items, **admission)
    arrays = batch.packed(max_length)
    rows = np.repeat(np.arange(len(arrays.lengths)), arrays.lengths)
    scored = ~np.isnan(arrays.rewards)[rows]
    row_ends = arrays.cu_seqlens[1:] - 1
    tensors = _tensors(batch, arrays, scale) | {
        "cu_seqlens": _tensor(arrays.cu_seqlens, np.int32),
        "row_index": _tensor(rows, np.int64),
        **_predicted(arrays, scored, row_ends, 0),
    }
    if turn_facts:
        turns = batch.turn_arrays()
        index = _moved(turns.packed(np.arange(len(turns.row)), -1), row_ends, -1)
        tensors |= _turns(turns, index, tensors["loss_mask"], lambda fact: fact)
    return tensors


def _admitted(
    items: Iterable[Trajectory | Sequence[Trajectory]],
    *,
    group_size: int | None = None,
    unscored: Unscored = "refuse",
    tokenizer_fingerprint: str | None = None,
    vocabulary_size: int | None = None,
) -> TrajectoryBatch:
    if not isinstance(items, Iterable) or isinstance(items, (str, bytes)):
        raise ConfigError(f"items is {shown(items)}.", "Give trajectories, or groups of them.")
    groups = (item if isinstance(item, Sequence) and not isinstance(item, str) else [item] for item in items)
    batch = TrajectoryBatch(trajectory for group in groups for trajectory in group)
    checks.check_rewards(batch, unscored)
    checks.check_groups(batch, group_size)
    checks.check_tokenizers(batch, tokenizer_fingerprint)
    checks.check_vocabulary(batch, vocabulary_size)
    checks.check_logprobs(batch)
    checks.check_sampling(batch)
    return batch


def _tensors(batch: TrajectoryBatch, arrays: PaddedBatch | PackedBatch, scale: bool) -> dict[str, torch.Tensor]:
    """The tensors that padded and packed batches have in common."""
    advantages = np.nan_to_num(batch.advantages(scale=scale))[arrays.trajectory_index]
    return {
        "input_ids": _tensor(arrays.token_ids, np.int64),
        "position_ids": _tensor(arrays.position_ids, np.int64),
        "advantages": _tensor(advantages, np.float32),
        "rewards": _tensor(arrays.rewards, np.float32),
        "oldest_versions": _tensor(arrays.oldest_versions, np.int32),
        "lengths": _tensor(arrays.lengths, np.int64),
        "trajectory_index": _tensor(arrays.trajectory_index, np.int64),
        "group_index": _tensor(arrays.group_index, np.int64),
    }


def _predicted(arrays: PaddedBatch | PackedBatch, scored: Any, row_ends: Any, no_token: int) -> dict[str, torch.Tensor]:
    """The tensors that a loss reads, each entry moved to the position of the logits that predict it.

    Args:
        scored: bool, broadcasts to the arrays' shape. False where nothing is to be learned.
        row_ends: index of the last position of each row, before padding or the next row.
        no_token: id for positions after which no token follows.
    """
    mask = _moved(arrays.loss_mask, row_ends, 0).astype(bool) & scored
    versions = _moved(arrays.weight_versions, row_ends, 0)
    return {
        "target_ids": _tensor(_moved(arrays.token_ids, row_ends, no_token), np.int64),
        "loss_mask": _tensor(mask, np.bool_),
        "old_logprobs": _tensor(np.where(mask, _moved(arrays.logprobs, row_ends, 0.0), 0.0), np.float32),
        "weight_versions": _tensor(np.where(mask, versions, CONTEXT_VERSION), np.int32),
    }


def _moved(array: Any, row_ends: Any, filler: float) -> Any:
    """The array with each entry one position earlier, and `filler` at the ends of rows."""
    ahead = np.roll(array, -1, axis=-1)
    ahead[row_ends] = filler
    return ahead


def _turns(
    turns: TurnArrays, index: Any, loss_mask: torch.Tensor, arranged: Callable[[Any], Any]
) -> dict[str, torch.Tensor]:
    """The tensors of turns. `index` is the turn of each position, and `arranged` gives a fact its shape."""
    facts = {f"turn_{name}": _tensor(arranged(getattr(turns, name)), np.int64) for name in FACTS}
    return {"turn_index": _tensor(np.where(loss_mask.numpy(), index, -1), np.int64), **facts}


def _tensor(array: Any, dtype: Any) -> torch.Tensor:
    """The array as a tensor. It shares the memory of an array that has this type already, which this module made."""
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            "Tensors need torch, which is not installed.", 'Run: pip install "tau2-rollout-service[torch]"'
        ) from error
    return torch.from_numpy(array.astype(dtype, copy=False))
