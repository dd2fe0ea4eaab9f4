"""Settings hold the names of secrets and never a secret; no error about settings repeats one."""

from __future__ import annotations

import os
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service import RolloutConfig, cli, redaction
from rollout_service.config import field_names, secrets
from rollout_service.config.secrets import secret
from rollout_service.errors import ConfigError

KEYS = [
    "sk-proj-Ab1cdEfGhIjKlMnOpQrStUvWx",
    "hf_AbCdEfGhIjKlMnOpQrStUv",
    "AKIAIOSFODNN7EXAMPLE",
    "0123456789abcdef0123456789abcdef",
    "6f1c1f0e-3b57-4f0a-9c53-0f0e4a2b7c11",
    "c2VjcmV0LXNlY3JldA==",
]


NEEDS = {"user.": {"user.model": "openai/m"}, "policy.url": {"policy.engine": "http", "policy.tokenizer": "t"}}
"""What must be set for the settings with these names to have an effect."""
NEEDS["policy.engine_arguments"] = {"policy.engine": "transformers", "policy.model": "m"}


def load(overrides: dict[str, Any] | None = None, environ: dict[str, str] | None = None, path: Any = None) -> Any:
    needed: dict[str, Any] = {}
    for start, others in NEEDS.items():
        if any(name.startswith(start) for name in overrides or {}):
            needed |= others
    return RolloutConfig.load(path, needed | (overrides or {}), environ or {})


def refusal(*args: Any, **kwargs: Any) -> str:
    """All that the refused settings say: the error with its traceback, but for the lines of source in it."""
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return said_by(caught.value)


def said_by(error: ConfigError) -> str:
    shown = traceback.TracebackException.from_exception(error)
    return "".join(line for line in shown.format(chain=True) if not line.startswith("  File "))


# A key in the wrong place --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["user.api_key_var", "evaluation.judge.api_key_var"])
@pytest.mark.parametrize("key", [*KEYS, "correct-horse-battery", "pass word", "päss"])
def test_a_key_where_its_variable_s_name_belongs_is_refused_and_not_printed(field, key):
    said = refusal({field: key})
    assert key not in said
    assert field in said
    assert "NAME of an environment variable, such as OPENAI_API_KEY" in said


@pytest.mark.parametrize("key", KEYS)
def test_a_key_in_the_variable_for_its_name_is_refused_and_not_printed(key):
    said = refusal(environ={"TAU2_USER_API_KEY_VAR": key})
    assert key not in said
    assert "user.api_key_var" in said


@pytest.mark.parametrize("key", ["hunter", "Swordfish", "SWORDFISH", "abcdefghijklmnop"])
def test_a_key_that_could_be_a_name_is_not_printed_as_one(key):
    with pytest.raises(ConfigError, match="the environment variable that it names is not set") as caught:
        secret(load({"user.api_key_var": key}).user.api_key_var, "user.api_key_var", {})
    assert key not in str(caught.value)


def test_a_name_is_taken_and_one_that_is_set_may_look_like_anything(monkeypatch):
    assert load({"user.api_key_var": "MY_KEY"}).user.api_key_var == "MY_KEY"
    monkeypatch.setenv("K0123456789ABCDEF", "v")
    assert load({"user.api_key_var": "K0123456789ABCDEF"}).user.api_key_var == "K0123456789ABCDEF"


@pytest.mark.parametrize("field", field_names())
@pytest.mark.parametrize("key", KEYS)
def test_no_field_s_error_repeats_a_key(field, key):
    for value in (key, [key], {"a": {"b": key}}, {key: 1}):
        said = ""
        try:
            load({field: value})
        except ConfigError as error:
            said = said_by(error)
        assert key not in said


@pytest.mark.parametrize("key", KEYS)
def test_no_error_about_a_name_repeats_a_key(key):
    assert key not in refusal({key: 1})
    assert key not in refusal({f"user.{key}": 1})
    assert key not in refusal({"limits": key, "limits.max_turns": 3})
    assert key not in refusal(environ={f"ROLLOUT_USER__{key}": "1"})


@pytest.mark.parametrize("key", [*KEYS, "correct-horse-battery"])
def test_no_error_about_a_file_repeats_a_key(key, tmp_path):
    path = tmp_path / "settings.yaml"
    for text in (
        f"user: {{api_key: '{key}'}}",
        f"user:\n  api_key_var: '{key}'",
        f"user:\n  api_key: {key}: x",
        f"user:\n  api_key: *{key}",
        f"user:\n  api_key: !{key} x",
        f"user: [\n  api_key: '{key}",
        f"user:\n\tapi_key: {key}",
    ):
        path.write_text(text)
        assert key not in refusal(path=path)


@pytest.mark.parametrize("key", [*KEYS, "correct-horse-battery"])
def test_no_error_about_an_environment_variable_repeats_a_key(key):
    for name in ("ROLLOUT_USER__API_KEY", "ROLLOUT_USER__API_KEY_VAR", "ROLLOUT_USER__ARGUMENTS__API_KEY"):
        for text in (key, f"[{key}", f"{{{key}: 1"):
            assert key not in refusal(environ={name: text})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("form", ["{}", "{}=1", "limits.max_turns={}", "user.api_key=[{}", "tasks={}", "user.{}=1"])
def test_no_error_of_the_command_line_repeats_a_key(form, key, capsys):
    for arguments in (["collect", "--set", form.format(key)], ["doctor", f"--{key}"], ["doctor", key], [key]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        printed = capsys.readouterr()
        assert stopped.value.code == 2
        assert key not in printed.out + printed.err
        assert printed.err


@settings(deadline=None, max_examples=50)
@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=24, max_size=40), st.sampled_from(field_names()))
def test_nothing_of_a_random_key_is_repeated(key, field):
    if sum(letter.isdigit() for letter in key) < 2 or not any(letter.isalpha() for letter in key):
        return
    said = ""
    try:
        load({field: f"sk-{key}"})
    except ConfigError as error:
        said = str(error)
    assert key not in said


# Keys that are given in settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["user.arguments", "evaluation.judge.arguments"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": "correct-horse"},
        {"api_key": 12345678},
        {"headers": {"Authorization": "Bearer correct-horse"}},
        {"extra_headers": {"X-Api-Key": "correct-horse"}},
        {"extra_body": {"nested": [{"client_secret": "correct-horse"}]}},
        {"aws_access_key_id": "correct-horse"},
        {"aws_secret_access_key": "correct-horse"},
        {"aws_session_token": "correct-horse"},
        {"vertex_credentials": '{"a": "correct-horse"}'},
        {"azure_ad_token": "correct-horse"},
        {"api_base": "http://bob:correct-horse@host/v1"},
        {"api_base": "http://host/v1?key=correct-horse"},
        {"metadata": {"note": "sk-correcthorsebattery"}},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_key_in_the_arguments_of_a_model_is_refused_with_its_remedy(field, arguments):
    said = refusal({field: arguments})
    assert "correct" not in said
    assert "12345678" not in said
    assert f"{field} (from argument): {next(iter(arguments))}" in said
    assert "name that in api_key_var" in said


@pytest.mark.parametrize("arguments", [{"token": "correct-horse"}, {"api_key": "correct-horse"}])
def test_a_key_in_the_arguments_of_an_engine_is_refused_with_its_remedy(arguments):
    said = refusal({"policy.engine_arguments": arguments})
    assert "correct" not in said
    assert "policy.env_vars_from" in said


@pytest.mark.parametrize(
    "variables",
    [
        {"HF_TOKEN": "correct-horse"},
        {"WANDB_API_KEY": "correct-horse"},
        {"HTTPS_PROXY": "http://bob:correct-horse@proxy:3128"},
        {"SOMETHING": "sk-correcthorsebattery"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_secret_in_the_environment_of_replicas_is_refused_with_its_remedy(variables):
    said = refusal({"policy.env_vars": variables})
    assert "correct" not in said
    assert f"policy.env_vars (from argument): the value of {next(iter(variables))}" in said
    assert "policy.env_vars_from" in said


def test_arguments_and_variables_without_a_secret_are_taken():
    arguments = {"max_tokens": 5, "stop": ["a@b"], "prompt_cache_key": "tau2", "api_version": "2024-02-01", "seed": 1}
    variables = {"NCCL_DEBUG": "WARN", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    engine = {"tp_size": 1, "tokenizer_path": "/models/m", "device_map": {"": 0}, "token": None}
    config = load(
        {"user.arguments": arguments, "policy.env_vars": variables, "policy.engine_arguments": engine},
    )
    assert config.user.arguments == arguments
    assert config.policy.env_vars == variables
    assert config.policy.engine_arguments == engine


# URLs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["policy.url", "user.base_url", "evaluation.judge.base_url"])
def test_the_password_of_a_url_stays_in_the_settings_and_is_not_shown(field):
    url = "http://bob:correct-horse@host:8000/v1"
    config = load({field: url})
    assert config.explicit()[field] == url
    assert "correct-horse" not in repr(config) + str(config)
    assert "correct-horse" in redaction._remembered


@pytest.mark.parametrize("field", ["policy.url", "user.base_url", "evaluation.judge.base_url"])
def test_a_password_that_breaks_its_url_is_refused_and_not_printed(field):
    said = refusal({field: "http://bob:correct/horse@host:8000/v1"})
    assert field in said
    assert "%2F for a /" in said
    assert "correct" not in said
    assert "horse" not in said


# From the variable to the process -------------------------------------------------------------------------------------


def test_a_secret_is_read_from_the_variable_that_is_named_and_known_from_then_on():
    assert secret("KEY", "user.api_key_var", {"KEY": "correct-horse"}) == "correct-horse"
    assert redaction.redact("correct-horse") == redaction.REDACTED
    assert secret(None, "user.api_key_var", {}) is None
    with pytest.raises(ConfigError, match=r"^user\.api_key_var: .* KEY is not set\. Export it where"):
        secret("KEY", "user.api_key_var", {})


def test_a_process_is_given_what_it_needs_and_no_more(monkeypatch):
    for name in ("USER_KEY", "JUDGE_KEY", "HF_TOKEN", "OTHER_KEY"):
        monkeypatch.setenv(name, f"value of {name}")
    config = load(
        {
            "user.model": "openai/m",
            "user.api_key_var": "USER_KEY",
            "evaluation.judge.api_key_var": "JUDGE_KEY",
            "policy.env_vars_from": ["HF_TOKEN", "NOT_SET_HERE"],
        }
    )
    assert secrets.of_episodes(config) == {"USER_KEY": "value of USER_KEY", "JUDGE_KEY": "value of JUDGE_KEY"}
    assert secrets.of_replicas(config) == {"HF_TOKEN": "value of HF_TOKEN"}


def test_what_a_process_is_given_is_in_its_environment_and_known(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    secrets.receive({"SOME_NAME": "correct-battery"})
    assert secret("SOME_NAME", "user.api_key_var") == "correct-battery"
    assert redaction.redact("it is correct-battery") == f"it is {redaction.REDACTED}"
