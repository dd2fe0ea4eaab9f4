"""Sizes against what transformers really builds, the formulas by hand, and what must hold for any cluster."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rollout_service.cli import app, main
from rollout_service.cli.sizing import EPISODE_BYTES, ClusterSize, ModelShape
from rollout_service.errors import ConfigError

QWEN3_4B = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 96,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS = {
    "Qwen3 of 4B shape": QWEN3_4B,
    "Qwen3, tiny": TINY | {"model_type": "qwen3", "head_dim": 8},
    "Qwen3, biased": TINY | {"model_type": "qwen3", "head_dim": 8, "attention_bias": True},
    "Qwen2": TINY | {"model_type": "qwen2"},
    "Qwen2, tied": TINY | {"model_type": "qwen2", "tie_word_embeddings": True},
    "Llama": TINY | {"model_type": "llama"},
    "Llama, biased": TINY | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "Llama, wide heads": TINY | {"model_type": "llama", "head_dim": 16},
    "Mistral": TINY | {"model_type": "mistral"},
    "Qwen3 with experts": TINY | EXPERTS | {"model_type": "qwen3_moe", "head_dim": 8},
    "Qwen3 with experts in some layers": TINY
    | EXPERTS
    | {"model_type": "qwen3_moe", "head_dim": 8, "decoder_sparse_step": 2},
    "Qwen3 with a dense first layer": TINY
    | EXPERTS
    | {"model_type": "qwen3_moe", "head_dim": 8, "mlp_only_layers": [0]},
}


@cache
def four_billion() -> ModelShape:
    return ModelShape.read(QWEN3_4B)


def cluster(**changes: Any) -> ClusterSize:
    return ClusterSize(**{"model": four_billion(), "gpu_memory": 80, "episodes": 512, "context": 16_000} | changes)


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS.keys())
def test_parameters_are_those_of_the_model_that_transformers_builds(fields, tmp_path):
    config = transformers.AutoConfig.for_model(**fields)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert ModelShape.read(fields).parameters == real
    assert ModelShape.read(config.to_dict()).parameters == real
    config.save_pretrained(tmp_path)
    assert ModelShape.read(tmp_path).parameters == real
    assert ModelShape.read(str(tmp_path / "config.json")).parameters == real


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS.keys())
def test_the_cache_is_as_large_as_the_keys_and_values_that_transformers_makes(fields):
    fields = fields | {"num_hidden_layers": 2, "intermediate_size": 8, "vocab_size": 64}
    config = transformers.AutoConfig.for_model(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    cached = model(torch.arange(7)[None], use_cache=True).past_key_values
    real = sum(part.numel() * part.element_size() for layer in cached.layers for part in (layer.keys, layer.values))
    assert cluster(model=ModelShape.read(fields), context=100).cache_bytes_per_token * 7 == real


def test_a_cluster_for_512_episodes_by_hand():
    size = cluster()
    assert size.model.parameters == 4_022_468_096
    assert size.weight_bytes == 8_044_936_192
    assert size.cache_bytes_per_token == 2 * 36 * 8 * 128 * 2 == 147_456
    assert size.cache_tokens == (int(0.85 * 80 * 2**30) - 8_044_936_192) // 147_456 == 440_602
    assert size.episodes_per_replica == 27
    assert (size.replicas, size.gpus) == (19, 19)
    assert (size.actors, size.slots) == (8, 64)
    assert size.environment_bytes == tuple(8 * 300_000_000 + 512 * each for each in EPISODE_BYTES)


def test_gpus_that_share_a_replica_share_its_weights_and_cache():
    alone, pair = cluster(), cluster(tensor_parallel=2)
    assert pair.cache_bytes_per_token == alone.cache_bytes_per_token
    assert pair.cache_tokens > 2 * alone.cache_tokens
    assert pair.gpus == 2 * pair.replicas


def test_more_gpus_than_key_value_heads_keep_copies_of_them():
    assert cluster(tensor_parallel=16).cache_bytes_per_token == 2 * cluster(tensor_parallel=8).cache_bytes_per_token


def test_smaller_values_leave_room_for_more_episodes():
    assert cluster(value_bytes=1).episodes_per_replica > 2 * cluster().episodes_per_replica


def held(**changes: Any) -> int:
    """Episodes of a replica; none when nothing fits."""
    try:
        return cluster(**changes).episodes_per_replica
    except ConfigError:
        return 0


memories = st.floats(1, 300)
contexts = st.integers(1, 300_000)
fractions = st.floats(0.05, 0.99)


@given(memories, memories, contexts, fractions)
def test_more_memory_never_holds_fewer_episodes(one, other, context, fraction):
    less, more = sorted((one, other))
    common = {"context": context, "memory_fraction": fraction}
    assert held(gpu_memory=less, **common) <= held(gpu_memory=more, **common)


@given(fractions, fractions, contexts)
def test_a_larger_share_of_the_memory_never_holds_fewer_episodes(one, other, context):
    less, more = sorted((one, other))
    assert held(memory_fraction=less, context=context) <= held(memory_fraction=more, context=context)


@given(contexts, contexts, memories)
def test_longer_episodes_are_never_more(one, other, memory):
    short, long = sorted((one, other))
    assert held(context=short, gpu_memory=memory) >= held(context=long, gpu_memory=memory)


@given(st.sampled_from([1, 2, 4, 8]), contexts, memories)
def test_a_replica_of_twice_the_gpus_holds_at_least_twice_the_episodes(gpus, context, memory):
    one = held(tensor_parallel=gpus, context=context, gpu_memory=memory)
    assert held(tensor_parallel=2 * gpus, context=context, gpu_memory=memory) >= (2 * one if gpus < 8 else one)


@given(st.integers(1, 100_000), st.integers(1, 400_000))
def test_what_is_asked_for_has_its_place_and_no_replica_or_actor_is_idle(episodes, context):
    size = cluster(episodes=episodes, context=context)
    assert size.replicas * size.episodes_per_replica >= episodes > (size.replicas - 1) * size.episodes_per_replica
    assert size.actors * size.slots >= episodes > (size.actors - 1) * size.slots
    assert size.slots <= 1024
    assert size.episodes_per_replica * context <= size.cache_tokens
    assert size.cache_tokens * size.cache_bytes_per_token + size.weight_bytes <= 0.85 * 80 * 2**30


@pytest.mark.parametrize("name", sorted(QWEN3_4B.keys() - {"model_type", "tie_word_embeddings"}))
def test_a_missing_field_is_named(name):
    with pytest.raises(ConfigError, match=f"has no {name}"):
        ModelShape.read({key: value for key, value in QWEN3_4B.items() if key != name})


@pytest.mark.parametrize("name", ["num_experts", "moe_intermediate_size"])
def test_a_missing_field_of_the_experts_is_named(name):
    fields = QWEN3_4B | EXPERTS | {"model_type": "qwen3_moe"}
    with pytest.raises(ConfigError, match=f"has no {name}"):
        ModelShape.read({key: value for key, value in fields.items() if key != name})


@pytest.mark.parametrize("value", [0, -1, 36.0, "36", True, [36]])
def test_a_field_that_is_no_number_of_things_is_named_with_its_value(value):
    with pytest.raises(ConfigError, match="has num_hidden_layers"):
        ModelShape.read(QWEN3_4B | {"num_hidden_layers": value})


@pytest.mark.parametrize("kind", ["deepseek_v3", "gemma3", "qwen3_next", None])
def test_a_model_whose_memory_is_not_known_is_refused_with_those_that_are(kind):
    with pytest.raises(ConfigError, match=f"model_type {kind!r}.*Known are llama, .*qwen3_moe"):
        ModelShape.read(QWEN3_4B | {"model_type": kind})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu_memory": 0}, "gpu_memory is 0"),
        ({"gpu_memory": float("nan")}, "gpu_memory is nan"),
        ({"episodes": 0}, "episodes is 0"),
        ({"context": -5}, "context is -5"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
        ({"value_bytes": 0}, "value_bytes is 0"),
        ({"memory_fraction": 1.0}, "memory_fraction is 1.0"),
        ({"tensor_parallel": 3}, "cannot be split evenly over 3 GPUs"),
        ({"tensor_parallel": 64}, "cannot be split evenly over 64 GPUs"),
        ({"gpu_memory": 8}, "The weights take 7.5 GiB of each GPU"),
        ({"context": 440_603}, "An episode of 440,603 tokens does not fit: a replica's cache has 440,602"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        cluster(**changes)


# The command -----------------------------------------------------------------------------------------------------


def arguments(folder: Any, **changes: Any) -> list[str]:
    given = {"model": folder, "gpu-memory": 80, "episodes": 512, "context": 16_000} | changes
    return ["size", *(text for name, value in given.items() for text in (f"--{name}", str(value)))]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_4B))
    return tmp_path


def test_the_command_prints_what_to_set(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    done = CliRunner().invoke(app, arguments(folder, **{"tensor-parallel": 2, "memory-fraction": 0.8}))
    assert done.exit_code == 0, done.output
    rows = dict(line.strip("│").split("│") for line in done.stdout.splitlines() if line.startswith("│"))
    found = {name.strip(): value.strip() for name, value in rows.items()}
    size = cluster(tensor_parallel=2, memory_fraction=0.8)
    assert found["model"] == "4,022,468,096 parameters, 7.5 GiB"
    assert found["key-value cache"] == "144 KiB a token"
    assert found["one replica"] == f"{size.cache_tokens:,} tokens: {size.episodes_per_replica} episodes"
    assert found["policy.replicas"] == f"{size.replicas} ({size.gpus} GPUs)"
    assert found["policy.engine_arguments"] == "tp_size: 2, mem_fraction_static: 0.8"
    assert found["service.actors"] == "8 (a CPU each)"
    assert found["service.slots"] == "64"
    assert found["environments' memory"] == "2.7 to 3.2 GiB, and what Ray takes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json cannot be read: No such file or directory"),
        ("{", "config.json is not JSON"),
        ("[]", "config.json holds a list"),
        ('{"model_type": "qwen3"}', "has no hidden_size"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_paragraph_and_exit_code_2(text, message, tmp_path, capsys):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(arguments(tmp_path / "config.json"))
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("Error: The model's configuration")
    assert message in shown.err
    assert shown.out == ""
