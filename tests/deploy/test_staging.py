"""New weights that wait for the turns to stop are all there, bit for bit, where the scheduler can open them. The real
SGLang makes the same of them as of files.
"""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deploy.engines import staging
from deploy.engines.sglang import _gpu
from deploy.engines.sglang_weights import SglangWeights
from deploy.engines.staging import Flat, GpuMemory, Staging
from rollout_service.config import PolicyConfig
from rollout_service.policy.weights import Bucket, Checkpoint, StoredTensors, stored
from tests.support import sglang, tiny_model
from tests.support.workers import program

PIECE = 1000
"""Bytes that are copied at a time."""


class HostAsGpu:
    """Free memory of a GPU: some of the host's."""

    def __init__(self, free: int) -> None:
        self.free = free

    def take(self, size: int) -> Any:
        return torch.zeros(size, dtype=torch.uint8) if size <= self.free else None

    def give_back(self) -> None: ...


def weights() -> dict[str, torch.Tensor]:
    """Tensors of many dtypes and shapes. One has several pieces, and one has none."""
    bits = torch.Generator().manual_seed(7)
    shapes = {
        "wide.weight": (torch.bfloat16, (37, 101)),
        "scale": (torch.float32, ()),
        "codes": (torch.float8_e4m3fn, (3, 5)),
        "none": (torch.float32, (0, 4)),
        "norm.weight": (torch.float64, (11,)),
        "steps": (torch.int8, (1,)),
        "narrow.weight": (torch.float32, (PIECE // 4, 2)),
    }
    return {
        name: torch.randint(256, (torch.empty(shape, dtype=dtype).nbytes,), dtype=torch.uint8, generator=bits)
        .view(dtype)
        .reshape(shape)
        for name, (dtype, shape) in shapes.items()
    }


def as_sent(tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> StoredTensors:
    """The tensors in several buckets, which arrive in another order."""
    monkeypatch.setattr("rollout_service.policy.weights._BUCKET_BYTES", 2 * PIECE)
    sent = stored(tensors, put=lambda data: data)
    assert len(sent.buckets) > 2
    turns = list(range(len(sent.buckets)))
    random.Random(3).shuffle(turns)

    async def arrives(data: Any, turn: int) -> Any:
        for _ in range(turn):
            await asyncio.sleep(0)
        return data

    return StoredTensors(tuple(Bucket(b.specs, arrives(b.data, t)) for b, t in zip(sent.buckets, turns, strict=True)))


def held(flat: Flat) -> dict[str, torch.Tensor]:
    """The tensors as the scheduler reads them. A place that is not aligned would be an error."""
    found = {}
    for spec, start in flat.starts:
        dtype = getattr(torch, spec.dtype)
        data = flat.memory[start : start + spec.count * dtype.itemsize]
        found[spec.name] = data.view(dtype).reshape(spec.shape)
    return found


def see_that_all_is_there(flat: Flat, sent: dict[str, torch.Tensor]) -> None:
    found = held(flat)
    assert list(found) == list(sent), "in their order"
    for name, tensor in sent.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("gpu", [None, HostAsGpu(1 << 20), HostAsGpu(PIECE)], ids=["no GPU", "a GPU", "a full GPU"])
def test_tensors_that_arrive_in_any_order_are_there_bit_for_bit(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_PIECE_BYTES", PIECE)
    sent = weights()
    flat = asyncio.run(Staging(gpu).tensors(as_sent(sent, monkeypatch)))
    see_that_all_is_there(flat, sent)
    fits = gpu is not None and gpu.free > PIECE
    assert flat.memory.is_shared() != fits, "what does not fit into the GPU is in memory that the scheduler can open"


def test_a_bucket_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost() -> Any:
        raise OSError("the object is lost")

    source = as_sent(weights(), monkeypatch)
    broken = StoredTensors((*source.buckets[:-1], Bucket(source.buckets[-1].specs, lost())))
    with pytest.raises(OSError, match="the object is lost"):
        asyncio.run(Staging(None).tensors(broken))
    source.buckets[-1].data.close()


def written(folder: Any) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """A checkpoint, and its tensors in the order in which its file has them."""
    tensors = weights()
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(str(folder)), tensors


def staged(engine: Any, source: Checkpoint, gpu: Any) -> list[Any]:
    return asyncio.run(SglangWeights(engine, 1, gpu).stage(source))


def engine(quantization: str | None = None) -> Any:
    return SimpleNamespace(tokenizer_manager=SimpleNamespace(model_config=SimpleNamespace(quantization=quantization)))


def test_a_checkpoint_waits_in_the_gpu(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_PIECE_BYTES", PIECE)
    source, tensors = written(tmp_path)
    [flat] = staged(engine(), source, HostAsGpu(1 << 20))
    see_that_all_is_there(flat, {name: tensors[name] for name in held(flat)})
    assert held(flat).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("quantization", "gpu"),
    [(None, None), (None, HostAsGpu(PIECE)), ("fp8", HostAsGpu(1 << 20))],
    ids=["no GPU", "a full GPU", "quantized"],
)
def test_another_checkpoint_waits_in_its_files(tmp_path: Any, quantization: str | None, gpu: Any) -> None:
    source, _ = written(tmp_path)
    assert staged(engine(quantization), source, gpu) == [source]


def test_a_checkpoint_that_is_cut_off_is_an_error(tmp_path: Any) -> None:
    source, _ = written(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)incomplete"):
        staged(engine(), source, HostAsGpu(1 << 20))


def test_a_gpu_keeps_two_gibibytes_free(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = driver(monkeypatch, free=(2 << 30) + 99)
    monkeypatch.setattr(staging, "another_process_reads", lambda tensor: True)
    assert gpu.take(100) is None
    assert gpu.take(99).nbytes == 99


def test_a_gpu_whose_memory_no_other_process_opens_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = driver(monkeypatch, free=80 << 30)
    monkeypatch.setattr(staging, "another_process_reads", lambda tensor: False)
    assert gpu.take(99) is None


@pytest.mark.parametrize(
    ("staging", "device", "there", "used"),
    [
        ("auto", None, True, True),  # SGLang's arguments name no device unless the user does
        ("auto", "cuda", True, True),
        ("auto", "cpu", True, False),
        ("auto", None, False, False),
        ("host", "cuda", True, False),
    ],
)
def test_weights_wait_in_the_gpu_that_the_engine_uses_unless_the_user_wants_the_host(
    monkeypatch: pytest.MonkeyPatch, staging: Any, device: str | None, there: bool, used: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    policy = PolicyConfig(engine="sglang", model="any", weight_staging=staging)
    gpu = _gpu(policy, SimpleNamespace(device=device, base_gpu_id=3))
    assert (gpu._device if gpu else None) == ("cuda:3" if used else None)


def test_a_gpu_of_which_nothing_was_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = driver(monkeypatch, free=0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("the GPU is used"))
    gpu.give_back()
    assert gpu.take(1) is None
    with pytest.raises(pytest.fail.Exception):
        gpu.give_back()


def driver(monkeypatch: pytest.MonkeyPatch, free: int) -> GpuMemory:
    """A GPU with so many bytes free, whose tensors are in the host's memory."""
    for name in ("ipc_collect", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    gpu = GpuMemory(0)
    gpu._device = "cpu"
    return gpu


class Unreadable:
    """What cannot be opened where it is sent."""

    device = "nowhere"

    def __reduce__(self) -> Any:
        return int, ("not a number",)


class Unsent(Unreadable):
    """What cannot even be sent."""

    def __reduce__(self) -> Any:
        raise RuntimeError("CUDA error: operation not supported")


def test_another_process_says_whether_it_reads_what_it_is_sent() -> None:
    assert staging.another_process_reads(torch.ones(1, dtype=torch.uint8))
    assert not staging.another_process_reads(Unreadable())
    assert not staging.another_process_reads(Unsent())


LOADED = """
import asyncio, json, sys
from types import SimpleNamespace

from deploy.engines import parameters, staging
from deploy.engines.sglang import SglangEngine
from deploy.engines.sglang_weights import SglangWeights
from deploy.engines.staging import Flat
from pathlib import Path
from rollout_service.config import PolicyConfig
from rollout_service.policy.weights import Bucket, Checkpoint, StoredTensors, stored
from sglang.srt.managers.io_struct import CheckWeightsReqInput

first, second, broken, arguments = json.loads(sys.argv[1])
gpu = SimpleNamespace(take=staging._shared_memory, give_back=lambda: None)  # "GPU" memory that this scheduler can open


async def played(engine):
    files, tensors = engine._weights, SglangWeights(engine._engine, 1, gpu)

    async def checksum():
        success, message, _, found = await engine._manager.check_weights(CheckWeightsReqInput(action="checksum"))
        assert success and found, message
        return found

    async def after(weights, source):
        staged = await weights.stage(source)
        kinds = [type(each).__name__ for each in staged]
        await weights.load(staged, 1)
        return [*kinds, await checksum()]

    async def refused(source):
        try:
            await tensors.stage(source)
        except Exception as error:
            return [type(error).__name__, await checksum()]

    async def object_of(data):
        return data

    async def lost():
        raise OSError("lost")

    sent = stored(dict(parameters.tensors(Path(first))), put=lambda data: data)
    whole = StoredTensors(tuple(Bucket(each.specs, object_of(each.data)) for each in sent.buckets))
    return {
        "start": await checksum(),
        "second from files": await after(files, Checkpoint(second)),
        "first from files": await after(files, Checkpoint(first)),
        "second as tensors": await after(tensors, Checkpoint(second)),
        "broken": await refused(Checkpoint(broken)),
        "lost": await refused(StoredTensors((Bucket(sent.buckets[0].specs, lost()),))),
        "first from the store": await after(tensors, whole),
    }


if __name__ == "__main__":
    engine = SglangEngine(PolicyConfig(engine="sglang", model=first, engine_arguments=arguments))
    print(json.dumps(asyncio.run(played(engine))), flush=True)
    engine.close()
"""


@pytest.mark.sglang
@pytest.mark.timeout(300)
@sglang.needed
def test_sglang_has_the_same_weights_from_tensors_as_from_files_and_its_old_ones_if_they_do_not_come(
    forks: dict[str, str], tmp_path: Any
) -> None:
    """With an output embedding that is tied to the input's, and several files."""
    shape: dict[str, Any] = {"tie_word_embeddings": True, "max_shard_size": "100KB"}
    folders = [tiny_model.make(tmp_path / str(seed), seed, **shape) for seed in (1, 2, 3)]
    files = sorted(folders[2].glob("*.safetensors"))
    assert len(files) > 2
    files[-1].write_bytes(files[-1].read_bytes()[:-100])
    done = program.run_code(forks, LOADED, [*map(str, folders), sglang.ENGINE_ARGUMENTS], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    first, second = found["start"], found["second from files"][1]
    assert first != second
    assert found == {
        "start": first,
        "second from files": ["Checkpoint", second],
        "first from files": ["Checkpoint", first],
        "second as tensors": ["Flat", second],
        "broken": ["SafetensorError", second],
        "lost": ["OSError", second],
        "first from the store": ["Flat", first],
    }
