"""What a model's files say of its weights, without reading one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deploy.engines import parameters
from rollout_service.errors import ConfigError, WeightError
from rollout_service.policy.weights import BroadcastTensors, Bucket, Checkpoint, StoredTensors, TensorSpec
from tests.support import tiny_model


def test_a_model_that_is_larger_than_its_gpus_is_refused_with_both_sizes(tmp_path):
    folder = tiny_model.make(tmp_path / "model", hidden_size=64)
    count = sum(int.__mul__(*(*shape, 1, 1)[:2]) for shape in parameters.shapes(folder).values())
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("auto", 4)):
        parameters.check_memory(str(folder), count * size, {"dtype": dtype})
        with pytest.raises(ConfigError, match=re.escape(str(folder)) + r".*GiB.*tp_size"):
            parameters.check_memory(str(folder), count * size - 1, {"dtype": dtype})


def test_a_size_that_is_not_known_is_not_guessed(tmp_path):
    folder = tiny_model.make(tmp_path / "model")
    parameters.check_memory(str(folder), 1, {"quantization": "fp8"})
    parameters.check_memory(str(folder), 1, {"cpu_offload_gb": 8})
    parameters.check_memory("no-such/model", 1, {})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    parameters.check_memory(str(folder), 1, {})
    (folder / "model.safetensors").unlink()
    parameters.check_memory(str(folder), 1, {})


def test_a_set_of_tensors_is_whole_when_it_has_every_parameter_of_the_models_own_files(tmp_path):
    def said(folder: Path, names: set[str]) -> frozenset[str] | None:
        known = parameters.shapes(folder)
        specs = tuple(
            TensorSpec(name, "float32", known.get(name, known["model.embed_tokens.weight"])) for name in names
        )
        return parameters.check_weights(str(folder), StoredTensors((Bucket(specs, None),)))

    for tied in (False, True):
        folder = tiny_model.make(tmp_path / str(tied), tie_word_embeddings=tied)
        everything = set(parameters.shapes(folder))
        head = {"lm_head.weight"}
        assert said(folder, everything | head) is None
        assert said(folder, everything - head) == (None if tied else everything - head)
        assert said(folder, everything - {"model.norm.weight"}) == everything - {"model.norm.weight"}
        assert parameters.check_weights(str(folder), Checkpoint(str(folder))) is None
    (folder / "model.safetensors").unlink()
    source = StoredTensors((Bucket((TensorSpec("a", "int8", (1,)),), None),))
    assert parameters.check_weights(str(folder), source) == {"a"}, "no file says what all are"


def test_an_update_without_a_tensor_is_refused(tmp_path):
    folder = str(tiny_model.make(tmp_path / "model"))
    for nothing in (StoredTensors(()), BroadcastTensors("group", ())):
        with pytest.raises(WeightError, match="have no tensor"):
            parameters.check_weights(folder, nothing)
