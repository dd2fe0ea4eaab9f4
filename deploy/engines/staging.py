"""Staging: brings new weights, while turns run, into memory that SGLang's scheduler can open.

Invariant: nothing here changes what the engine serves. All tensors of a source lie in one stretch of memory, in their
order, so that the scheduler loads them in one call: some models make one parameter of several tensors and must see
these together.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rollout_service.logs as logs
from deploy.engines import parameters
from rollout_service.policy.weights import Checkpoint, StoredTensors, TensorSpec, spec, unpacked

_log = logs.logger(__name__)

_COPIERS = 4
"""Threads that copy at a time. One alone gets new memory from the kernel more slowly than it copies."""

_PIECE_BYTES = 16 << 20
"""Most bytes that a thread copies at a time, and that it pins for a GPU."""

_ALIGNMENT = 256
"""Of a tensor's first byte: a multiple of every dtype's size, and what a GPU copies fastest."""

_SPARE_BYTES = 2 << 30
"""Memory of a GPU that is left free for what the scheduler allocates while it runs."""

_TRIAL_SECONDS = 60.0
"""How long a process may take to start and open a piece of the GPU's memory."""


@dataclass(frozen=True, slots=True)
class Flat:
    """Several tensors in one stretch of memory that the scheduler can open."""

    memory: Any
    """torch uint8[n]; must live until the scheduler has loaded it."""
    starts: tuple[tuple[TensorSpec, int], ...]
    """Each tensor, and the place of its first byte."""


class GpuMemory:
    """The free memory of the GPU that a replica's only scheduler uses."""

    def __init__(self, number: int) -> None:
        """
        Args:
            number: the GPU's, as this process counts.
        """
        self._device = f"cuda:{number}"
        self._used = False

    def take(self, size: int) -> Any:
        """torch uint8[size]; None: it does not fit with some memory to spare, or the scheduler could not open it."""
        import torch

        self.give_back()  # that of an update that was staged and then not loaded
        self._used = True
        free = int(torch.cuda.mem_get_info(self._device)[0])
        if free < size + _SPARE_BYTES:
            _log.info(
                "New weights of %.1f GB do not wait in the GPU: %.1f GB are free there, and %.1f must stay free.",
                size / 1e9,
                free / 1e9,
                _SPARE_BYTES / 1e9,
            )
            return None
        return torch.empty(size, dtype=torch.uint8, device=self._device) if self._is_shared else None

    def give_back(self) -> None:
        """Free memory that torch keeps in this process, for the scheduler's. A process that has taken none does not ask
        torch: that would begin to use the GPU, in the midst of an update through a process group."""
        if not self._used:
            return
        import torch

        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()

    @functools.cached_property
    def _is_shared(self) -> bool:
        """Whether processes can share this GPU's memory here. Tried once, because a scheduler that cannot open what it
        is given would end."""
        import torch

        shared = another_process_reads(torch.ones(1, dtype=torch.uint8, device=self._device))
        if not shared:
            _log.warning("New weights do not wait in the GPU: processes cannot share its memory (CUDA IPC) here.")
        return shared


def another_process_reads(tensor: Any) -> bool:
    """Whether a child of this process can open a tensor that is sent to it, and read a 1 there."""
    from torch import multiprocessing

    child = multiprocessing.get_context("spawn").Process(target=_expect_one, args=(tensor,), daemon=True)
    try:
        child.start()
    except RuntimeError as error:  # the driver or the allocator does not share it
        _log.warning("The memory of %s cannot be shared: %s", tensor.device, error)
        return False
    child.join(_TRIAL_SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
    return child.exitcode == 0


def _expect_one(tensor: Any) -> None:
    sys.exit(int(tensor.item()) != 1)


class Staging:
    """Where the new weights of one engine wait until its turns have stopped."""

    def __init__(self, gpu: GpuMemory | None) -> None:
        """
        Args:
            gpu: whose memory is used, where it is enough. None: only the host's is.
        """
        self._gpu = gpu
        self._copiers = ThreadPoolExecutor(_COPIERS, "staging")

    async def tensors(self, source: StoredTensors) -> Flat:
        """The tensors in the GPU's memory, or else in shared memory. Each bucket is copied when it is here."""
        starts, size = _places(source.specs)
        memory = await asyncio.to_thread(self._gpu.take, size) if self._gpu else None
        if memory is None:  # made as shared memory: share_memory_() would copy what is not there yet
            memory = await asyncio.to_thread(_shared_memory, size)
        flat = Flat(memory, starts)

        async def copy(bucket: Any) -> None:
            await self._copy(unpacked(bucket, await bucket.data), flat)

        await asyncio.gather(*(copy(bucket) for bucket in source.buckets))
        return flat

    async def checkpoint(self, source: Checkpoint) -> Flat | None:
        """The files' tensors in the GPU's memory. None: they do not fit there."""
        if self._gpu is None:
            return None
        named = await asyncio.to_thread(parameters.tensors, Path(source.path))
        starts, size = _places([spec(name, tensor) for name, tensor in named])
        memory = await asyncio.to_thread(self._gpu.take, size)
        if memory is None:
            return None
        flat = Flat(memory, starts)
        await self._copy(named, flat)
        return flat

    async def read(self, source: Checkpoint) -> None:
        """Read a checkpoint's files, so that they are in the page cache."""
        await self._all((_read, path) for path in parameters.files(Path(source.path)))

    async def give_back(self) -> None:
        """Free the GPU's memory of weights that were loaded."""
        if self._gpu is not None:
            await asyncio.to_thread(self._gpu.give_back)

    async def _copy(self, named: Iterable[tuple[str, Any]], flat: Flat) -> None:
        """Copy tensors that lie in the host's memory to their places."""
        import torch

        places = {spec.name: start for spec, start in flat.starts}
        pieces: list[tuple[Any, Any]] = []
        for name, tensor in named:
            data = tensor.reshape(-1).view(torch.uint8)
            target = flat.memory[places[name] : places[name] + len(data)]
            pieces += zip(target.split(_PIECE_BYTES), data.split(_PIECE_BYTES), strict=True)
        await self._all((_copy_piece, *piece) for piece in pieces)

    async def _all(self, calls: Iterable[tuple[Any, ...]]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._copiers, *call) for call in calls))


def _places(specs: Iterable[TensorSpec]) -> tuple[tuple[tuple[TensorSpec, int], ...], int]:
    """Where each tensor begins, and the bytes of all."""
    import torch

    starts, end = [], 0
    for each in specs:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        starts.append((each, start))
        end = start + each.count * getattr(torch, each.dtype).itemsize
    return tuple(starts), end


def _shared_memory(size: int) -> Any:
    import torch

    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


def _copy_piece(target: Any, source: Any) -> None:
    import torch

    if not target.is_cuda:
        target.copy_(source)
        return
    pinned = torch.empty(len(source), dtype=torch.uint8, pin_memory=True)  # torch keeps it for the next piece
    pinned.copy_(source)
    target.copy_(pinned, non_blocking=True)
    torch.cuda.current_stream(target.device).synchronize()


def _read(path: Path) -> None:
    buffer = bytearray(_PIECE_BYTES)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
