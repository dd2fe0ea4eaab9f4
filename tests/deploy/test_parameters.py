"""What a model's files say of its weights, without reading one."""

from __future__ import annotations

import json
import re

import pytest

from deploy.engines import parameters
from rollout_service.errors import ConfigError
from tests.support import tiny_model


def test_a_model_that_is_larger_than_its_gpus_is_refused_with_both_sizes(tmp_path):
    folder = tiny_model.make(tmp_path / "model", hidden_size=64)
    count = sum(int.__mul__(*(*shape, 1, 1)[:2]) for shape in parameters.shapes(folder).values())
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("auto", 4)):
        parameters.refuse_too_large(str(folder), count * size, {"dtype": dtype})
        with pytest.raises(ConfigError, match=re.escape(str(folder)) + r".*GiB.*tp_size"):
            parameters.refuse_too_large(str(folder), count * size - 1, {"dtype": dtype})


def test_a_size_that_is_not_known_is_not_guessed(tmp_path):
    folder = tiny_model.make(tmp_path / "model")
    parameters.refuse_too_large(str(folder), 1, {"quantization": "fp8"})
    parameters.refuse_too_large(str(folder), 1, {"cpu_offload_gb": 8})
    parameters.refuse_too_large("no-such/model", 1, {})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    parameters.refuse_too_large(str(folder), 1, {})
    (folder / "model.safetensors").unlink()
    parameters.refuse_too_large(str(folder), 1, {})
