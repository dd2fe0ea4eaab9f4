"""SglangWeights: how new weights reach SGLang's scheduler.

Invariant: what can be done while turns run is done by `stage`: tensors from the object store lie in memory that the
scheduler can open, and a checkpoint's files in the page cache, before the turns stop. Tensors of a process group are
the exception: only the scheduler can receive those, and it samples nothing meanwhile.

In an event loop only the tokenizer manager's coroutines may be used, because the Engine's own methods run another loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rollout_service.logs as logs
from deploy.engines import parameters
from rollout_service.errors import WeightError
from rollout_service.policy.weights import (
    BroadcastTensors,
    Bucket,
    Checkpoint,
    Rendezvous,
    StoredTensors,
    WeightSource,
    single_sources,
    unpacked,
)

_log = logs.logger(__name__)

_BEGUN = "Failed to update weights"
"""How SGLang reports a checkpoint that failed half way. It then loads its files again, which may differ from the
weights that it had."""

_NOT_BEGUN = "Failed to receive weights"
"""How SGLang reports a broadcast that broke. It receives all tensors before it loads the first."""

_READ_BYTES = 16 << 20

_SPARE_BYTES = 2 << 30
"""Memory of a GPU that is left free for what the scheduler allocates while it runs."""


@dataclass(frozen=True, slots=True)
class _Flat:
    """Several tensors in one stretch of memory that the scheduler can open."""

    memory: Any
    """torch uint8[n]; must live until the scheduler has loaded it."""
    metadata: list[Any]
    """SGLang's `FlattenedTensorMetadata` of each tensor."""


Staged = list[Checkpoint | BroadcastTensors | list[_Flat]]
"""What is loaded, in this order."""


class SglangWeights:
    """The weights of one engine."""

    def __init__(self, engine: Any, processes: int, on_gpu: bool) -> None:
        """
        Args:
            engine: SGLang's.
            processes: number of its schedulers.
            on_gpu: whether staged tensors may use the GPU's memory.
        """
        self._manager = engine.tokenizer_manager
        self._processes = processes
        self._on_gpu = on_gpu
        self._groups: set[str] = set()

    def check_group(self, source: WeightSource) -> None:
        """Raise `WeightError` if the source is a process group that the engine is not in."""
        if isinstance(source, BroadcastTensors) and source.group not in self._groups:
            raise WeightError(f"This engine is not in a process group {source.group}.", "Join it first.")

    async def stage(self, source: WeightSource) -> Staged:
        """See `Engine`."""
        self.check_group(source)  # it may have left since the check
        staged: Staged = []
        for single in single_sources(source):
            if isinstance(single, StoredTensors):
                data = await asyncio.gather(*(bucket.data for bucket in single.buckets))
                staged.append(await asyncio.to_thread(self._flattened, single.buckets, data))
                continue
            if isinstance(single, Checkpoint):
                await asyncio.to_thread(_read_through, Path(single.path))
            staged.append(single)
        return staged

    async def load(self, staged: Staged, version: int) -> None:
        """Load what was staged, and free its memory. See `Engine` for the errors."""
        try:
            await self._load(staged, version)
        finally:
            staged.clear()
            if self._on_gpu:
                await asyncio.to_thread(_give_back_gpu_memory)

    async def _load(self, staged: Staged, version: int) -> None:
        for number, single in enumerate(staged):
            if isinstance(single, Checkpoint):
                await self._load_checkpoint(single, version, alone=number == 0)
                continue
            await self._begin()
            if isinstance(single, BroadcastTensors):
                await self._receive(single, str(version))
            else:
                for flat in single:
                    await self._load_flat(flat, str(version))
            await self._end()

    # Staging, in threads ---------------------------------------------------------------------------------------------

    def _flattened(self, buckets: tuple[Bucket, ...], data: list[Any]) -> list[_Flat]:
        """Copy the buckets to memory that the scheduler can open: the GPU's if all of them fit, else shared memory."""
        size = sum(int(memory.nbytes) for each in data for memory in each)
        if self._on_gpu:
            _give_back_gpu_memory()  # that of an update that was staged and then not loaded
        device = "cuda" if self._on_gpu and _free_gpu_bytes() > size + _SPARE_BYTES else "cpu"
        return [self._flat(bucket, each, device) for bucket, each in zip(buckets, data, strict=True)]

    def _flat(self, bucket: Bucket, data: Any, device: str) -> _Flat:
        import torch
        from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorMetadata

        tensors = sorted(unpacked(bucket, data), key=lambda item: -item[1].dtype.itemsize)  # so that each is aligned
        size = sum(tensor.nbytes for _, tensor in tensors)
        if device == "cpu":  # made as shared memory: share_memory_() would copy what is not there yet
            memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
        else:
            memory = torch.empty(size, dtype=torch.uint8, device=device)
        start, metadata = 0, []
        for name, tensor in tensors:
            end = start + tensor.nbytes
            memory[start:end].copy_(tensor.reshape(-1).view(torch.uint8))
            metadata.append(FlattenedTensorMetadata(name, tensor.shape, tensor.dtype, start, end, tensor.nbytes))
            start = end
        if device == "cuda":
            torch.cuda.synchronize()
        return _Flat(memory, metadata)

    # In the scheduler, while turns are stopped -----------------------------------------------------------------------

    async def _load_checkpoint(self, source: Checkpoint, version: int, *, alone: bool) -> None:
        from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput

        success, message, _ = await self._manager.update_weights_from_disk(
            # auto: otherwise an engine that started with dummy weights would invent these too
            UpdateWeightFromDiskReqInput(
                model_path=source.path, load_format="auto", weight_version=str(version), flush_cache=False
            )
        )
        if not alone or _BEGUN in message:
            _check_success((success, message))
        if not success:
            raise WeightError(f"{source.path} could not be loaded: {message}", "See the replica's log.")

    async def _begin(self) -> None:
        from sglang.srt.managers.io_struct import BeginWeightUpdateReqInput

        _check_success(await self._manager.begin_weight_update(BeginWeightUpdateReqInput(), None))

    async def _end(self) -> None:
        from sglang.srt.managers.io_struct import EndWeightUpdateReqInput

        _check_success(await self._manager.end_weight_update(EndWeightUpdateReqInput(), None))

    async def _receive(self, source: BroadcastTensors, version: str) -> None:
        from sglang.srt.managers.io_struct import UpdateWeightsFromDistributedReqInput

        success, message = await self._manager.update_weights_from_distributed(
            UpdateWeightsFromDistributedReqInput(
                names=[spec.name for spec in source.specs],
                dtypes=[spec.dtype for spec in source.specs],
                shapes=[list(spec.shape) for spec in source.specs],
                group_name=source.group,
                weight_version=version,
                flush_cache=False,
            ),
            None,
        )
        try:
            check_received((success, message), self._processes)
        except WeightError:
            await self._end()
            raise

    async def _load_flat(self, flat: _Flat, version: str) -> None:
        from sglang.srt.managers.io_struct import UpdateWeightsFromTensorReqInput
        from sglang.srt.utils import MultiprocessingSerializer

        message = {"flattened_tensor": flat.memory, "metadata": flat.metadata}
        packed = [MultiprocessingSerializer.serialize(message) for _ in range(self._processes)]  # one for each to open
        _check_success(
            await self._manager.update_weights_from_tensor(
                UpdateWeightsFromTensorReqInput(
                    serialized_named_tensors=packed,
                    load_format="flattened_bucket",
                    weight_version=version,
                    flush_cache=False,
                ),
                None,
            )
        )

    # Process groups --------------------------------------------------------------------------------------------------

    async def join(self, rendezvous: Rendezvous, rank: int) -> None:
        """See `Engine`. All of the engine's GPUs join, with ranks from `rank` upwards."""
        from sglang.srt.managers.io_struct import InitWeightsUpdateGroupReqInput

        success, message = await self._manager.init_weights_update_group(
            InitWeightsUpdateGroupReqInput(
                master_address=rendezvous.address,
                master_port=rendezvous.port,
                rank_offset=rank,
                world_size=rendezvous.world_size,
                group_name=rendezvous.name,
                backend=rendezvous.backend,
            ),
            None,
        )
        if not success:
            raise WeightError(f"The engine could not join the group {rendezvous.name!r}: {message}", "Make a new one.")
        self._groups.add(rendezvous.name)

    async def leave(self, group: str) -> None:
        """See `Engine`. SGLang is called even if the engine never joined, because it may still wait in the group."""
        from sglang.srt.managers.io_struct import DestroyWeightsUpdateGroupReqInput

        self._groups.discard(group)
        await self._manager.destroy_weights_update_group(DestroyWeightsUpdateGroupReqInput(group_name=group), None)


def _free_gpu_bytes() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[0])


def _give_back_gpu_memory() -> None:
    """Free memory that torch keeps in this process, for the scheduler's."""
    import torch

    torch.cuda.ipc_collect()
    torch.cuda.empty_cache()


def _read_through(folder: Path) -> None:
    """Read a checkpoint's files, so that they are in the page cache when the scheduler reads them."""
    buffer = bytearray(_READ_BYTES)
    for path in parameters.files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def check_received(result: tuple[bool, str], processes: int) -> None:
    """Check that a broadcast came and was loaded.

    Args:
        result: what SGLang says, which is what its first process found. Another one may have received and loaded all.

    Raises:
        WeightError: it did not come, and the engine's only process has its old weights.
        RuntimeError: any other failure.
    """
    if _NOT_BEGUN in result[1] and processes == 1:
        raise WeightError(f"The tensors did not all come: {result[1]}", "Make another group and send them again.")
    _check_success(result)


def _check_success(result: tuple[bool, str]) -> None:
    success, message = result
    if not success:
        raise RuntimeError(f"SGLang's weight update failed: {message}")
