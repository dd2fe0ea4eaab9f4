"""How many tokens the policy takes, and which: what the configuration says, then what the model's own files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rollout_service.config import Policy
from rollout_service.errors import ConfigError
from rollout_service.policy.base import Sampling
from rollout_service.policy.context import WITHOUT_MODEL, check_sampling, context_length, vocabulary
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
    assert context_length(Policy(engine=engine, model=model)) == 1234


@pytest.mark.parametrize("engine", SERVED)
def test_the_configuration_goes_before_the_model_which_is_not_even_read(tmp_path, engine):
    assert context_length(Policy(engine=engine, model=str(tmp_path / "nowhere"), context_length=512)) == 512


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(engine="http", url="http://there", tokenizer="/nowhere"),
        Policy(engine="http", url="http://there", tokenizer="/nowhere", model="/nowhere"),
    ],
    ids=["scripted", "http", "http with a model"],
)
def test_without_a_model_that_is_served_here_it_is_65536_or_what_the_configuration_says(policy):
    assert context_length(policy) == WITHOUT_MODEL == 65536
    assert context_length(policy.model_copy(update={"context_length": 4096})) == 4096


def test_a_model_whose_configuration_does_not_say_takes_65536(tmp_path):
    model = folder(tmp_path, json.dumps({"model_type": "mamba"}))
    assert context_length(Policy(engine="sglang", model=model)) == 65536


def test_of_a_model_with_images_it_is_the_text_model_s(tmp_path):
    text = {"model_type": "llama", "max_position_embeddings": 777}
    model = folder(tmp_path, json.dumps({"model_type": "llava", "text_config": text}))
    assert context_length(Policy(engine="sglang", model=model)) == 777


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
        context_length(Policy(engine="transformers", model=model))
    assert raised.value.problem.startswith(f"policy.model: the configuration of {model!r} cannot be read: ")
    assert "\n" not in str(raised.value)
    assert "config.json" in raised.value.remedy


def test_a_model_that_could_not_be_read_can_be_mended(tmp_path):
    policy = Policy(engine="transformers", model=str(tmp_path))
    with pytest.raises(ConfigError):
        context_length(policy)
    folder(tmp_path, json.dumps({"model_type": "qwen3", "max_position_embeddings": 999}))
    assert context_length(policy) == 999


@pytest.mark.parametrize("engine", SERVED)
def test_the_model_s_ids_are_the_rows_of_its_embedding(model, engine):
    assert vocabulary(Policy(engine=engine, model=model)) == 4096
    assert vocabulary(Policy()) is None
    assert vocabulary(Policy(engine="http", url="http://there", tokenizer="/nowhere", model="/nowhere")) is None


@pytest.mark.parametrize("engine", SERVED)
def test_a_token_that_ends_turns_must_be_one_of_the_model_s(model, engine):
    policy = Policy(engine=engine, model=model)
    check_sampling(policy, Sampling(stop_token_ids=(0, 4095)))
    with pytest.raises(ConfigError, match=r"policy.sampling.stop_token_ids has 4096; the model's ids are 0 to 4095"):
        check_sampling(policy, Sampling(stop_token_ids=(7, 4096)))
    check_sampling(Policy(), Sampling(stop_token_ids=(10**9,)))
