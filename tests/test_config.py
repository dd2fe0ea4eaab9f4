"""Settings: where they come from, which wins, and what is refused."""

from __future__ import annotations

import pytest

from rollout_service import RolloutConfig
from rollout_service.config import field_names, secret
from rollout_service.errors import ConfigError


def load(overrides=None, environ=None, path=None):
    return RolloutConfig.load(path, overrides, environ or {})


def test_the_default_needs_no_model_and_no_key():
    config = load()
    assert (config.tasks.domain, config.policy.engine, config.user.resolved_kind) == ("retail", "scripted", "scripted")


def test_file_environment_and_argument_win_in_this_order(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("limits: {max_turns: 1, max_steps: 1, max_errors: 1}\n")
    environ = {"ROLLOUT_LIMITS__MAX_TURNS": "2", "ROLLOUT_LIMITS__MAX_STEPS": "2"}
    limits = load({"limits.max_turns": 3}, environ, path).limits
    assert (limits.max_turns, limits.max_steps, limits.max_errors, limits.wall_seconds) == (3, 2, 1, 1800.0)


def test_the_variables_that_tau2_users_know_are_honoured():
    config = load(
        environ={
            "TAU2_DOMAIN": "airline",
            "TAU2_TASK_SPLIT": "test",
            "TAU2_USER_MODEL": "openai/m",
            "TAU2_USER_BASE_URL": "http://x/v1",
            "TAU2_USER_API_KEY_VAR": "MY_KEY",
        }
    )
    assert (config.tasks.domain, config.tasks.split) == ("airline", "test")
    assert (config.user.model, config.user.base_url, config.user.api_key_var) == ("openai/m", "http://x/v1", "MY_KEY")
    assert config.user.resolved_kind == "llm", "a named model is meant to be used"


def test_our_own_variable_is_stronger_than_tau2_s():
    assert load(environ={"TAU2_DOMAIN": "airline", "ROLLOUT_TASKS__DOMAIN": "mock"}).tasks.domain == "mock"


def test_a_mix_of_domains_can_come_from_yaml_and_environment(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("tasks: {domain: {retail: 2, airline: 1}}\n")
    assert load(path=path).tasks.domain == {"retail": 2, "airline": 1}
    assert load(environ={"ROLLOUT_TASKS__DOMAIN": "{mock: 1}"}, path=path).tasks.domain == {"mock": 1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"limits.max_turn": 3}, r"limits\.max_turn: no such setting.*Did you mean limits\.max_turns\?"),
        ({"limit.max_turns": 3}, r"limit: no such setting"),
        ({"limits.max_turns": 0}, r"limits\.max_turns is 0 .*greater than or equal to 1"),
        ({"limits.max_turns": "many"}, r"limits\.max_turns is 'many'"),
        ({"policy.engine": "vllm"}, r"policy\.engine is 'vllm'.*'scripted'"),
        ({"policy.script": {"malformed_call": 2}}, r"policy\.script\.malformed_call is 2"),
        ({"user.kind": "llm"}, r"user\.model is not set.*TAU2_USER_MODEL"),
        ({"tasks.domain": {"retail": 0}}, r"weights above 0"),
        ({"tasks.domain": {"a": 1, "b": 1}, "tasks.ids": ["1"]}, r"not with a mix"),
        ({"user.api_key": "sk-1"}, r"user\.api_key: no such setting.*Did you mean user\.api_key_var\?"),
    ],
)
def test_unknown_keys_and_bad_values_are_refused_with_field_value_and_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(overrides)


def test_the_source_of_a_bad_value_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("limits: {max_turns: 0}\n")
    with pytest.raises(ConfigError, match=r"from .*c\.yaml"):
        load(path=path)
    with pytest.raises(ConfigError, match="environment variable ROLLOUT_LIMITS__MAX_TURNS"):
        load(environ={"ROLLOUT_LIMITS__MAX_TURNS": "0"})


@pytest.mark.parametrize(("text", "message"), [("a: [", "not YAML"), ("- a", "holds a list")])
def test_a_config_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path=path)


def test_a_missing_config_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load(path=tmp_path / "none.yaml")


def test_an_empty_config_file_is_the_default(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("")
    assert load(path=path) == load()


def test_overrides_of_a_loaded_config_are_checked_too():
    config = load()
    assert config.with_overrides({"limits.max_turns": 7}).limits.max_turns == 7
    assert config.limits.max_turns == 30
    with pytest.raises(ConfigError, match=r"limits\.max_turns"):
        config.with_overrides({"limits.max_turns": -1})


def test_only_what_was_set_counts_as_explicit():
    assert load({"limits.max_turns": 7, "policy.script.latency.mean": 1.0}).explicit() == {
        "limits.max_turns": 7,
        "policy.script.latency.mean": 1.0,
    }
    assert load().explicit() == {}


def test_task_ids_may_be_written_as_numbers():
    assert load({"tasks.ids": [0, 7]}).tasks.ids == ["0", "7"]


def test_an_environment_variable_that_is_no_yaml_is_refused_by_name():
    with pytest.raises(ConfigError, match="ROLLOUT_LIMITS__MAX_TURNS"):
        load(environ={"ROLLOUT_LIMITS__MAX_TURNS": "["})


def test_the_solo_agent_has_no_user_to_check():
    assert load({"agent": "solo", "user.model": "openai/m"}).user_kind == "dummy"


def test_a_secret_is_read_from_the_variable_that_is_named():
    assert secret("KEY", "user.api_key_var", {"KEY": "v"}) == "v"
    assert secret(None, "user.api_key_var", {}) is None
    with pytest.raises(ConfigError, match=r"user\.api_key_var.*KEY is not set.*runtime_env"):
        secret("KEY", "user.api_key_var", {})


def test_every_setting_can_be_set_by_its_dotted_name():
    names = field_names()
    assert "policy.sampling.temperature" in names
    assert "user.script.latency.mean" in names
    config = load({"policy.sampling.temperature": 0.5, "user.script.latency.mean": 1.5})
    assert (config.policy.sampling.temperature, config.user.script.latency.mean) == (0.5, 1.5)
