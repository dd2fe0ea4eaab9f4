"""Weight updates: where the new weights are, their version, and what happens to running turns.

Invariant: every update has a version, an integer that only grows. An update holds everything that a replica needs to
load it. Its `TensorSpec`s are checked against the model before any weight is changed.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

import rollout_service.config.arguments as arguments
from rollout_service.errors import WeightError
from rollout_service.policy.nccl import NcclSettings
from rollout_service.redaction import shown

UpdateMode = Literal["drain", "abort_and_resume", "in_place"]
"""What happens to running turns. `drain`: they finish first. `abort_and_resume`: they stop and continue from their
tokens; the new weights compute the prefix again. `in_place`: they continue without a stop, on the keys and values that
the old weights left in the cache."""

_AHEAD = 2
"""Buckets that wait to be written into the object store."""

_LARGEST_VERSION = int(np.iinfo(np.int32).max)

_BUCKET_BYTES = 1 << 28
"""Bytes of tensors per object in the store. While one is written there, the next is brought from the trainer's GPU."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named parameter."""

    name: str
    """Its name in the model's checkpoint."""
    dtype: str
    """torch's name without the prefix `torch.`, such as `bfloat16`."""
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights in a folder in Hugging Face format that every replica's node can read."""

    path: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """Several tensors in one object."""

    specs: tuple[TensorSpec, ...]
    data: Any
    """Object reference of a list: of each tensor its bytes, uint8[n]. The store has each without a copy."""


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """Weights in Ray's object store."""

    buckets: tuple[Bucket, ...]

    @property
    def specs(self) -> list[TensorSpec]:
        """The specs of all tensors."""
        return [spec for bucket in self.buckets for spec in bucket.specs]


@dataclass(frozen=True, slots=True)
class BroadcastTensors:
    """Weights that rank 0 of a process group sends, one broadcast for each tensor, in this order."""

    group: str
    specs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Layers:
    """Weights in several places, loaded in this order. A later tensor replaces an earlier one of the same name."""

    sources: tuple[Checkpoint | StoredTensors, ...]


WeightSource = Checkpoint | StoredTensors | BroadcastTensors | Layers


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """New weights for every replica."""

    source: WeightSource
    version: int
    mode: UpdateMode
    after: int | None = None
    """Version that these weights must be loaded over, if they leave out parameters that were changed before. Over any
    other version the result would be weights that nobody trained. None: any version will do."""


def single_sources(source: WeightSource) -> tuple[Checkpoint | StoredTensors | BroadcastTensors, ...]:
    """The places to load from, in order."""
    return source.sources if isinstance(source, Layers) else (source,)


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of a process group for weight updates meet. Rank 0 is the trainer, the others are the replicas'
    GPUs."""

    name: str
    address: str
    port: int
    backend: Literal["nccl", "gloo"]
    world_size: int
    timeout_seconds: float = 600.0
    """Longest wait for the other ranks to join, or to send or receive a tensor."""


@dataclass(frozen=True, slots=True)
class GroupTerms:
    """What the replicas require of a process group."""

    world_size: int
    nccl: tuple[NcclSettings, ...]
    """How NCCL is set up in each replica. See `process_group.match_nccl`."""


def check_mode(mode: Any) -> None:
    """Raise `WeightError` unless `mode` is an `UpdateMode`."""
    if mode not in get_args(UpdateMode):
        raise WeightError(f"mode is {mode!r}.", f"Choose one of {', '.join(get_args(UpdateMode))}.")


def check_version(version: Any) -> None:
    """Raise `WeightError` unless `version` is an integer from 0 to 2**31 - 1, which the record of a token can hold."""
    if type(version) is not int or not 0 <= version <= _LARGEST_VERSION:
        raise WeightError(
            f"version is {version!r}.", f"Give an integer from 0 to {_LARGEST_VERSION}, such as the training step."
        )


def spec(name: str, tensor: Any) -> TensorSpec:
    """The spec of a torch tensor or numpy array.

    Raises:
        WeightError: it is neither, or the name is not a string.
    """
    if not isinstance(name, str):
        raise WeightError(f"A tensor has the name {name!r}.", "Give model.state_dict().")
    if not hasattr(tensor, "dtype"):
        kind = type(tensor).__name__
        raise WeightError(f"{name} is a {kind}, neither a torch tensor nor a numpy array.", "Give model.state_dict().")
    return TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def requested_update(weights: Any, version: Any, mode: Any, group: Any, put: Any) -> WeightUpdate:
    """The update that a caller of `RolloutClient.update_weights` asks for.

    Args:
        weights: a checkpoint folder, or tensors by name.
        group: the `WeightGroup` that carries the tensors; None: they are put into the object store.
        put: `ray.put`.

    Raises:
        WeightError: an argument is of the wrong type or out of range.
    """
    check_mode(mode)
    check_version(version)
    if group is not None and not hasattr(group, "check_open"):
        raise WeightError(f"group is {shown(group)}.", "Give what client.weight_group() returns.")
    if isinstance(weights, (str, os.PathLike)):
        if group is not None:
            raise WeightError("A checkpoint does not go through a process group.", "Leave out the group.")
        folder = arguments.text("weights", os.fsdecode(weights), "/ckpt/step_40", WeightError)
        return WeightUpdate(Checkpoint(os.path.abspath(folder)), version, mode)
    if not isinstance(weights, Mapping):
        raise WeightError(
            f"weights is a {type(weights).__name__}.", "Give a checkpoint folder, or tensors by name: state_dict()."
        )
    if not weights:
        raise WeightError("weights is empty.", "Give at least one tensor.")
    if group is not None:
        specs = tuple(spec(name, tensor) for name, tensor in weights.items())
        return WeightUpdate(BroadcastTensors(group.name, specs), version, mode)
    return WeightUpdate(stored(weights, put), version, mode)


def stored(tensors: Mapping[str, Any], put: Any) -> StoredTensors:
    """Put tensors into an object store, in buckets of about `_BUCKET_BYTES`.

    Args:
        tensors: torch tensors (any device) or numpy arrays, by their names in the model's checkpoint.
        put: `ray.put`.

    Raises:
        WeightError: one of them is neither.
    """
    items = [(spec(name, tensor), tensor) for name, tensor in tensors.items()]
    with ThreadPoolExecutor(1) as writer:  # this thread has the trainer's CUDA streams, so it reads the tensors
        written: list[tuple[tuple[TensorSpec, ...], Future[Any]]] = []
        for part in _buckets(items):
            data = _on_host([tensor for _, tensor in part])
            written.append((tuple(what for what, _ in part), writer.submit(put, data)))
            if len(written) > _AHEAD:  # so that the host's memory does not hold all of them at once
                written[-1 - _AHEAD][1].result()
        return StoredTensors(tuple(Bucket(specs, put_.result()) for specs, put_ in written))


async def check_available(source: WeightSource) -> None:
    """Check that the object store has all tensors of the source. They go with the process that gave them, and a bucket
    that is gone must be noticed before any weights are loaded.

    Raises:
        WeightError: some are gone.
    """
    from ray.exceptions import RayError

    for single in single_sources(source):
        if not isinstance(single, StoredTensors):
            continue
        try:
            await asyncio.gather(*(bucket.data for bucket in single.buckets))
        except RayError as error:
            raise WeightError("Their tensors are gone, with the process that gave them.", "Send new ones.") from error


def unpacked(bucket: Bucket, data: Any) -> Iterator[tuple[str, Any]]:
    """Name and torch tensor of each tensor in the bucket: read-only views of `data`, a list of uint8[n]."""
    import torch

    for item, memory in zip(bucket.specs, data, strict=True):
        dtype = getattr(torch, item.dtype)
        tensor = torch.frombuffer(memory, dtype=dtype) if item.count else torch.empty(0, dtype=dtype)
        yield item.name, tensor.view(item.shape)


def _buckets(items: Iterable[tuple[TensorSpec, Any]]) -> Iterator[list[tuple[TensorSpec, Any]]]:
    bucket: list[tuple[TensorSpec, Any]] = []
    size = 0
    for what, tensor in items:
        if bucket and size + tensor.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append((what, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def _on_host(tensors: list[Any]) -> list[Any]:
    """Each tensor's memory as uint8[n]. Those of a GPU come through pinned memory, all at once."""
    found, devices = [], set()
    for tensor in tensors:
        if isinstance(tensor, np.ndarray | np.generic):
            found.append(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
            continue
        import torch

        whole = tensor.detach().contiguous()
        if whole.is_cuda:
            devices.add(whole.device)
            pinned = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=True)
            whole = pinned.copy_(whole, non_blocking=True)
        found.append(whole.cpu().reshape(-1).view(torch.uint8).numpy())
    for device in devices:  # a trainer may have spread its model over several GPUs
        torch.cuda.current_stream(device).synchronize()
    return found
