"""Tensors that went through the object store are the tensors that the trainer gave, bit for bit."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.errors import WeightError
from rollout_service.policy import weights
from rollout_service.policy.weights import (
    Bucket,
    StoredTensors,
    TensorSpec,
    check_mode,
    check_version,
    spec,
    stored,
    unpacked,
)

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool]


def put(data: list[np.ndarray]) -> list[np.ndarray]:
    """Stands for `ray.put` and `ray.get`: what comes back is read only."""
    assert {(each.dtype, each.ndim) for each in data} == {(np.dtype(np.uint8), 1)}
    stored = [each.copy() for each in data]
    for each in stored:
        each.flags.writeable = False
    return stored


def round_trip(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor for bucket in stored(tensors, put).buckets for name, tensor in unpacked(bucket, bucket.data)}


def bits(tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
    """What makes two tensors equal, NaNs too."""
    if isinstance(tensor, np.ndarray):
        return str(tensor.dtype), tensor.shape, tensor.tobytes()
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat.numpy().tobytes()


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bits, NaNs and infinities among them."""
    count = int(np.prod(shape)) * dtype.itemsize
    top = 2 if dtype == torch.bool else 256
    data = np.random.default_rng(seed).integers(0, top, count, dtype=np.uint8)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data.tobytes()), dtype=dtype).reshape(shape)


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
any_tensors = st.lists(st.builds(random_tensor, st.sampled_from(DTYPES), shapes, st.integers(0, 1000)), max_size=8).map(
    lambda tensors: {f"w{i}": tensor for i, tensor in enumerate(tensors)}
)


@given(tensors=any_tensors, limit=st.integers(1, 200))
@settings(deadline=None)
def test_whatever_is_stored_comes_back_in_order_and_bit_for_bit(tensors, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_BUCKET_BYTES", limit)
        back = round_trip(tensors)
    assert list(back) == list(tensors)
    assert [bits(tensor) for tensor in back.values()] == [bits(tensor) for tensor in tensors.values()]


@given(tensors=any_tensors, limit=st.integers(1, 200))
@settings(deadline=None)
def test_a_bucket_is_as_full_as_the_limit_allows_and_over_it_only_where_one_tensor_alone_is(tensors, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_BUCKET_BYTES", limit)
        buckets = stored(tensors, put).buckets
    assert [item.name for bucket in buckets for item in bucket.specs] == list(tensors)
    sizes = [[tensors[item.name].nbytes for item in bucket.specs] for bucket in buckets]
    assert [sum(bucket) for bucket in sizes] == [sum(map(len, bucket.data)) for bucket in buckets]
    assert all(len(bucket) == 1 or sum(bucket) <= limit for bucket in sizes)
    assert all(sum(one) + two[0] > limit for one, two in itertools.pairwise(sizes)), "room was left"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1,), (2, 3)], ids=str)
def test_every_dtype_and_shape_comes_back(dtype, shape):
    tensor = random_tensor(dtype, shape, 1)
    back = round_trip({"before": torch.ones(1, dtype=torch.int8), "w": tensor})["w"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert bits(back) == bits(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0).reshape(3, 4)[:, 1:3],
        torch.arange(12.0)[::3],
        torch.tensor([1.0, 2.0]).expand(3, 2),
        torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        torch.nn.Parameter(torch.ones(2, 2)),
    ],
    ids=["transposed", "columns", "strided", "expanded", "permuted", "parameter"],
)
def test_a_tensor_that_does_not_lie_in_one_piece_comes_back(tensor):
    back = round_trip({"w": tensor})["w"]
    assert torch.equal(back, tensor)
    assert back.dtype == tensor.dtype


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "int64", "uint8", "bool"])
@pytest.mark.parametrize(
    "shaped",
    [
        lambda array: array.reshape(3, 4),
        lambda array: array.reshape(3, 4).T,
        lambda array: array[::-2],
        lambda array: array[:0],
        lambda array: array[5:6].reshape(()),
    ],
    ids=["matrix", "transposed", "backwards", "empty", "0-dim"],
)
def test_a_numpy_array_comes_back_as_a_tensor(dtype, shaped):
    array = shaped(np.arange(12).astype(dtype))
    back = round_trip({"w": array})["w"]
    assert back.dtype == getattr(torch, dtype)
    assert back.shape == array.shape
    assert bits(back) == bits(array)


def test_torch_and_numpy_go_together():
    back = round_trip({"a": torch.tensor([1, 2], dtype=torch.int8), "b": np.float32([3, 4]), "c": torch.tensor(5.0)})
    assert [tensor.tolist() for tensor in back.values()] == [[1, 2], [3, 4], 5]


def test_what_comes_back_is_a_view_of_the_bucket_and_not_a_copy():
    bucket = stored({"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(2, 2)}, put).buckets[0]
    addresses = [each.ctypes.data for each in bucket.data]
    assert [tensor.data_ptr() for _, tensor in unpacked(bucket, bucket.data)] == addresses


def test_a_spec_says_the_name_the_dtype_without_torch_and_the_shape():
    assert spec("w", torch.zeros(2, 3, dtype=torch.bfloat16)) == TensorSpec("w", "bfloat16", (2, 3))
    assert spec("w", torch.tensor(1, dtype=torch.int8)) == TensorSpec("w", "int8", ())
    assert spec("w", np.zeros((0, 4), dtype=np.float16)) == TensorSpec("w", "float16", (0, 4))
    assert type(spec("w", torch.zeros(2)).shape) is tuple, "not a torch.Size, which needs torch where it is unpickled"


def test_the_specs_are_those_of_all_buckets_in_order(monkeypatch):
    monkeypatch.setattr(weights, "_BUCKET_BYTES", 8)
    tensors = {"a": torch.zeros(2), "b": torch.zeros(5), "c": torch.zeros(1), "d": torch.zeros(1, 1)}
    source = stored(tensors, put)
    assert source.specs == [spec(name, tensor) for name, tensor in tensors.items()]
    assert [[item.name for item in bucket.specs] for bucket in source.buckets] == [["a"], ["b"], ["c", "d"]]


def test_buckets_are_put_in_order_and_at_most_a_few_wait_for_that(monkeypatch):
    monkeypatch.setattr(weights, "_BUCKET_BYTES", 4)
    read, puts = [], []
    go = threading.Event()

    def on_host(tensors):
        read.append(len(tensors))
        if len(read) == weights._AHEAD + 1:
            go.set()
        return host(tensors)

    def put_in_order(data):
        assert go.wait(60)
        assert len(read) - len(puts) <= weights._AHEAD + 1
        puts.append(data[0].view(np.float32).tolist())
        return f"reference {len(puts)}"

    host = weights._on_host
    monkeypatch.setattr(weights, "_on_host", on_host)
    source = stored({str(number): torch.tensor([float(number)]) for number in range(9)}, put_in_order)
    assert puts == [[float(number)] for number in range(9)]
    assert [bucket.data for bucket in source.buckets] == [f"reference {number}" for number in range(1, 10)]


def test_no_tensors_are_no_buckets():
    assert stored({}, put) == StoredTensors(())


def test_an_empty_bucket_holds_nothing():
    assert list(unpacked(Bucket((), None), [])) == []


def test_a_numpy_scalar_is_a_tensor_and_what_is_none_is_refused_by_name():
    assert round_trip({"scale": np.float32(0.5)})["scale"].item() == 0.5
    with pytest.raises(WeightError, match="scale is a float"):
        stored({"weight": torch.zeros(2), "scale": 0.5}, put)


@pytest.mark.parametrize("version", [-1, 2**31, 1.0, True, "3", None, np.int64(3)])
def test_a_version_that_cannot_stand_beside_a_token_is_refused(version):
    check_version(2**31 - 1)
    with pytest.raises(WeightError, match=r"version is .* integer from 0 to 2147483647"):
        check_version(version)


def test_a_mode_that_there_is_not_is_refused_with_those_that_there_are():
    check_mode("drain")
    with pytest.raises(WeightError, match=r"mode is 'inplace'.*drain, abort_and_resume, in_place"):
        check_mode("inplace")


def test_a_tensor_without_a_name_is_refused():
    with pytest.raises(WeightError, match="name 3"):
        stored({3: torch.zeros(2)}, put)
