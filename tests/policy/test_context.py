"""How many tokens the policy takes, and which: what the configuration says, then what the model's own files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError
from rollout_service.policy.context import (
    WITHOUT_MODEL,
    check_sampling,
    context_length,
    only_endpoint_knows,
    vocabulary,
)
from tests.support import tiny_model

SERVED = ("sglang", "transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_model.make(tmp_path_factory.mktemp("model"), max_position_embeddings=1234))


def folder(path: Path, config: str) -> str:
    (path / "config.json").write_text(config)
    return str(path)


@pytest.mark.parametrize("engine", SERVED)
def test_it_is_the_model_s_own_where_the_configuration_says_nothing(model, engine):
    assert context_length(PolicyConfig(engine=engine, model=model)) == 1234


@pytest.mark.parametrize("engine", SERVED)
def test_the_configuration_goes_before_the_model_which_is_not_even_read(tmp_path, engine):
    assert context_length(PolicyConfig(engine=engine, model=str(tmp_path / "nowhere"), context_length=512)) == 512


@pytest.mark.parametrize(
    "policy",
    [
        PolicyConfig(engine="http", url="http://there", tokenizer="/nowhere"),
        PolicyConfig(engine="http", url="http://there", tokenizer="/nowhere", model="/nowhere"),
    ],
)
def test_of_an_endpoint_of_others_nothing_is_assumed(policy):
    assert only_endpoint_knows(policy)
    with pytest.raises(ConfigError, match=r"policy\.context_length is not set"):
        context_length(policy)
    told = policy.model_copy(update={"context_length": 4096})
    assert (only_endpoint_knows(told), context_length(told)) == (False, 4096)


def test_the_scripted_engine_has_no_model_that_could_set_a_limit():
    assert context_length(PolicyConfig()) == WITHOUT_MODEL == 65536
    assert context_length(PolicyConfig(context_length=4096)) == 4096


def test_a_model_whose_configuration_does_not_say_makes_the_setting_a_duty(tmp_path):
    model = folder(tmp_path, json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match=r"policy\.context_length is not set.*does not say"):
        context_length(PolicyConfig(engine="sglang", model=model))
    assert context_length(PolicyConfig(engine="sglang", model=model, context_length=1000)) == 1000


def test_the_vocabulary_is_that_of_the_model_where_its_files_are_at_hand(model, tmp_path):
    rows = len(transformers.AutoTokenizer.from_pretrained(model))
    endpoint = {"engine": "http", "url": "http://there"}
    assert vocabulary(PolicyConfig(engine="sglang", model=model)) == rows
    assert vocabulary(PolicyConfig(**endpoint, tokenizer=model)) == rows
    assert vocabulary(PolicyConfig(**endpoint, tokenizer="/nowhere", model=model)) == rows
    assert vocabulary(PolicyConfig(**endpoint, tokenizer="/nowhere")) is None
    assert vocabulary(PolicyConfig(**endpoint, tokenizer=folder(tmp_path, "{}"))) is None
    assert vocabulary(PolicyConfig()) is None


def test_of_a_model_with_images_it_is_the_text_model_s(tmp_path):
    text = {"model_type": "llama", "max_position_embeddings": 777}
    model = folder(tmp_path, json.dumps({"model_type": "llava", "text_config": text}))
    assert context_length(PolicyConfig(engine="sglang", model=model)) == 777


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{not JSON",
        "{}",
        json.dumps({"model_type": "of a later version"}),
        pytest.param(
            json.dumps({"model_type": "qwen3", "max_position_embeddings": "many"}),
        ),
    ],
    ids=["no folder", "no JSON", "no model type", "unknown model type", "wrong type"],
)
def test_a_configuration_that_cannot_be_read_is_refused_with_the_field_and_the_model(tmp_path, config):
    model = str(tmp_path / "nowhere") if config is None else folder(tmp_path, config)
    with pytest.raises(ConfigError) as raised:
        context_length(PolicyConfig(engine="transformers", model=model))
    assert raised.value.problem.startswith(f"policy.model: the configuration of {model!r} cannot be read: ")
    assert "\n" not in str(raised.value)
    assert "config.json" in raised.value.remedy


def test_a_model_that_could_not_be_read_can_be_mended(tmp_path):
    policy = PolicyConfig(engine="transformers", model=str(tmp_path))
    with pytest.raises(ConfigError):
        context_length(policy)
    folder(tmp_path, json.dumps({"model_type": "qwen3", "max_position_embeddings": 999}))
    assert context_length(policy) == 999


@pytest.mark.parametrize("engine", SERVED)
def test_the_model_s_ids_are_the_rows_of_its_embedding(model, engine):
    assert vocabulary(PolicyConfig(engine=engine, model=model)) == 4096
    assert vocabulary(PolicyConfig()) is None
    assert vocabulary(PolicyConfig(engine="http", url="http://there", tokenizer="/nowhere", model="/nowhere")) is None


@pytest.mark.parametrize("engine", SERVED)
def test_a_token_that_ends_turns_must_be_one_of_the_model_s(model, engine):
    policy = PolicyConfig(engine=engine, model=model)
    check_sampling(policy, Sampling(stop_token_ids=(0, 4095)))
    with pytest.raises(ConfigError, match=r"policy.sampling.stop_token_ids has 4096; the model's ids are 0 to 4095"):
        check_sampling(policy, Sampling(stop_token_ids=(7, 4096)))
    check_sampling(PolicyConfig(), Sampling(stop_token_ids=(10**9,)))
