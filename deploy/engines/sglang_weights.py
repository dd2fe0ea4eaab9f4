"""SglangWeights: how new weights reach SGLang's scheduler.

Invariant: what can be done while turns run is done by `stage`: before the turns stop, tensors lie in memory that the
scheduler can open, and a checkpoint lies there too or in the page cache. Tensors of a process group are the exception:
only the scheduler can receive those, and it samples nothing meanwhile.

In an event loop only the tokenizer manager's coroutines may be used, because the Engine's own methods run another loop.
"""

from __future__ import annotations

from typing import Any

from deploy.engines.staging import Flat, GpuMemory, Staging
from rollout_service.errors import WeightError
from rollout_service.policy.weights import (
    BroadcastTensors,
    Checkpoint,
    Rendezvous,
    StoredTensors,
    WeightSource,
    single_sources,
)

_BEGUN = "Failed to update weights"
"""How SGLang reports a checkpoint that failed half way. It then loads its files again, which may differ from the
weights that it had."""

_NOT_BEGUN = "Failed to receive weights"
"""How SGLang reports a broadcast that broke. It receives all tensors before it loads the first."""

Staged = list[Checkpoint | BroadcastTensors | Flat]
"""What is loaded, in this order."""


class SglangWeights:
    """The weights of one engine."""

    def __init__(self, engine: Any, processes: int, gpu: GpuMemory | None) -> None:
        """
        Args:
            engine: SGLang's.
            processes: number of its schedulers.
            gpu: where new weights wait, if they fit. None: in the host's memory.
        """
        self._manager = engine.tokenizer_manager
        self._processes = processes
        self._staging = Staging(gpu)
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
                staged.append(await self._staging.tensors(single))
            elif isinstance(single, Checkpoint):
                await self._staging.read(single)
                staged.append(await self._checkpoint(single))
            else:
                staged.append(single)
        return staged

    async def _checkpoint(self, source: Checkpoint) -> Checkpoint | Flat:
        """Its tensors where they fit into the GPU. SGLang reads files of quantized weights in its own way."""
        quantized = self._manager.model_config.quantization is not None
        flat = None if quantized else await self._staging.checkpoint(source)
        return source if flat is None else flat

    async def load(self, staged: Staged, version: int) -> None:
        """Load what was staged, and free its memory. See `Engine` for the errors."""
        try:
            await self._load(staged, version)
        finally:
            staged.clear()
            await self._staging.give_back()

    async def _load(self, staged: Staged, version: int) -> None:
        for number, single in enumerate(staged):
            if isinstance(single, Checkpoint):
                await self._load_checkpoint(single, version, alone=number == 0)
                continue
            await self._begin()
            if isinstance(single, BroadcastTensors):
                await self._receive(single, str(version))
            else:
                await self._load_flat(single, str(version))
            await self._end()

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

    async def _load_flat(self, flat: Flat, version: str) -> None:
        import torch
        from sglang.srt.managers.io_struct import UpdateWeightsFromTensorReqInput
        from sglang.srt.utils import MultiprocessingSerializer
        from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorMetadata

        metadata = []
        for spec, start in flat.starts:
            dtype = getattr(torch, spec.dtype)
            size = spec.count * dtype.itemsize
            metadata.append(
                FlattenedTensorMetadata(spec.name, torch.Size(spec.shape), dtype, start, start + size, size)
            )
        message = {"flattened_tensor": flat.memory, "metadata": metadata}
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
