"""Settings: where they come from, which wins, and what is refused."""

from __future__ import annotations

import tempfile

import pytest

from rollout_service import RolloutConfig
from rollout_service.config import PolicyConfig, field_names
from rollout_service.config.names import section_of
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
        ({"limits.max_turns": 0}, r"limits\.max_turns is 0 .*out of its range\. Set it to at least 1\."),
        ({"limits.max_turns": "many"}, r"limits\.max_turns is 'many'"),
        ({"service.lease_seconds": 1}, r"service\.lease_seconds .*is 1: a lease so short would lapse.*Set at least 4"),
        ({"policy.engine": "vllm"}, r"policy\.engine is 'vllm'.*'scripted'"),
        ({"policy.script": {"malformed_call": 2}}, r"policy\.script\.malformed_call is 2"),
        ({"user.kind": "llm"}, r"user\.model is not set.*TAU2_USER_MODEL"),
        ({"tasks.domain": {"retail": 0}}, r"tasks\.domain.*: the weight of retail is 0\.0?.*weights above 0"),
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


def test_the_solo_agent_has_no_user_and_a_user_s_settings_beside_it_are_refused():
    assert load({"agent": "solo"}).user_kind == "dummy"
    with pytest.raises(ConfigError, match=r"user\.model \(from environment variable TAU2_USER_MODEL\).*agent is solo"):
        load({"agent": "solo"}, {"TAU2_USER_MODEL": "openai/m"})
    assert load({"agent": "solo", "user.model": None}, {"TAU2_USER_MODEL": "openai/m"}).user_kind == "dummy"


def test_a_model_without_an_engine_is_refused_with_the_engines_that_could_serve_it():
    with pytest.raises(ConfigError, match=r"policy\.model .*is scripted.*sglang or transformers.*or to http"):
        load({"policy.model": "Qwen/Qwen3-0.6B"})
    with pytest.raises(ConfigError, match=r"policy\.model .*is scripted"):
        RolloutConfig(policy={"model": "Qwen/Qwen3-0.6B"})


MODEL = {"policy.engine": "transformers", "policy.model": "m"}
HTTP = {"policy.engine": "http", "policy.url": "http://there", "policy.tokenizer": "t"}


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({}, "policy.url", "http://there"),
        ({}, "policy.engine_arguments", {"tp_size": 2}),
        (MODEL, "policy.url", "http://there"),
        (MODEL, "policy.script.early_stop", 0.5),
        (HTTP, "policy.engine_arguments", {"tp_size": 2}),
        (HTTP, "policy.env_vars", {"A": "1"}),
        (HTTP, "policy.replicas", 2),
        (HTTP, "policy.autoscaling.max_replicas", 2),
        (HTTP, "policy.gpus_per_replica", 1),
        (HTTP, "policy.cpus_per_replica", 1),
        (HTTP, "policy.max_ongoing_requests", 8),
        (HTTP, "policy.start_seconds", 8),
        (HTTP, "policy.application", "policy"),
        (HTTP, "policy.http_port", 8000),
        (HTTP, "policy.http_prompts", 8),
        (HTTP, "policy.env_vars_from", ["HF_TOKEN"]),
        (MODEL, "policy.http_host", "0.0.0.0"),
        ({}, "gateway.host", "::1"),
        ({}, "gateway.most_held_groups", 8),
        (HTTP, "policy.script.latency.mean", 1.0),
        ({"policy.autoscaling.max_replicas": 8}, "policy.replicas", 4),
        ({"service.autoscaling.max_actors": 8}, "service.actors", 4),
        ({}, "policy.script.latency.spread", 1.0),
        ({"user.script.latency.distribution": "exponential"}, "user.script.latency.spread", 1.0),
        ({"user.kind": "scripted"}, "user.model", "openai/m"),
        ({}, "user.base_url", "http://there/v1"),
        ({}, "user.api_key_var", "KEY"),
        ({}, "user.temperature", 0.7),
        ({}, "user.arguments", {"top_p": 0.9}),
        ({}, "user.timeout_seconds", 5),
        ({}, "user.retries", 1),
        ({"user.model": "openai/m"}, "user.script.chatter", 0.5),
        ({"agent": "solo"}, "user.script.chatter", 0.5),
        ({"evaluation.type": "env"}, "evaluation.judge.model", "openai/m"),
        ({"evaluation.type": "action"}, "evaluation.judge.base_url", "http://there/v1"),
    ],
)
def test_a_setting_that_nothing_would_heed_is_refused_by_name(settings, field, value):
    load(settings)
    section = field.removesuffix(".early_stop").removesuffix(".max_replicas")
    section = section.removesuffix(".latency.mean").removesuffix(".chatter")
    with pytest.raises(
        ConfigError, match=rf"^{section.replace('.', '[.]')} \(from argument\) is set, but has no effect"
    ):
        load(settings | {field: value})
    default = {"policy.replicas": 1, "user.retries": 5, "user.temperature": 0.0}
    assert load(settings | {field: default[field]} if field in default else settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"tape.path": "/tape"}, r"^tape\.path .*is set, but tape\.mode is not"),
        ({"tape.mode": "record"}, r"^tape\.mode .*is record, but there is no tape\.path"),
        ({"tape.path": "tape", "tape.mode": "record"}, r"^tape\.path .*depends on the folder of a process"),
        ({"tape.path": "/tape", "tape.mode": "record", "tape.latency": "recorded"}, r"^tape\.latency .*has no effect"),
        ({"user.model": "m", "user.price.prompt_usd": 1}, r"^user\.price\.completion_usd .*is not set"),
    ],
)
def test_a_tape_or_a_price_that_is_not_whole_is_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        load(settings)
    assert load({"tape.path": "/tape", "tape.mode": "off"}).tape.is_on is False


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "head.internal", "localhost.evil"])
def test_no_address_beyond_loopback_is_taken_without_tokens(host):
    for name in ("gateway.{}", "policy.http_{}"):
        beyond = {name.format("port"): 8000, name.format("host"): host}
        with pytest.raises(ConfigError, match=rf"^{name.format('host')}.*beyond the loopback.*there are no tokens"):
            load(beyond)
        assert load(beyond | {"gateway.tokens_file": "/run/tokens.yaml"}).gateway.has_tokens
        assert load(beyond | {"gateway.tokens_var": "ROLLOUT_TOKENS"}).gateway.has_tokens
        for near in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
            load(beyond | {name.format("host"): near})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gateway.tokens_file": "/a", "gateway.tokens_var": "TOKENS"}, r"gateway\.tokens_file .*is set, and"),
        ({"gateway.tokens_file": "tokens.yaml"}, r"gateway\.tokens_file .*Give an absolute path"),
        ({"gateway.tls_key": "/key.pem"}, r"gateway\.tls_certificate .*is not set"),
        ({"gateway.tls_certificate": "/cert.pem"}, r"gateway\.tls_key .*is not set"),
        ({"gateway.port": 8001, "policy.http_port": 8000}, r"gateway\.port .*is 8001 at .*listens at one address"),
    ],
)
def test_a_gateway_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load(settings)


def test_an_empty_section_is_no_section():
    for text in ("limits:\n", "limits: {}\n", "policy:\n  # engine: sglang\nlimits: {max_turns: 30}\n"):
        assert parsed(text) == load()
    assert parsed("limits:\n", {"ROLLOUT_LIMITS__MAX_TURNS": "7"}).limits.max_turns == 7


def parsed(text, environ=None):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return load(path=file.name, environ=environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits: {max_turns: 1}\ntasks: {split: test}\nlimits: {max_steps: 1}\n", r"'limits' twice, in lines 1 and 3"),
        ("policy:\n  sampling:\n    top_p: 0.5\n    top_p: 0.6\n", r"'top_p' twice, in lines 3 and 4"),
        ("limits: {max_turns: 1}\nlimits.max_turns: 2\n", r"limits\.max_turns is set twice"),
        ("version: 2\nenv: {name: retail}\n", r"^version: no such setting.*Valid here: tasks, agent, policy"),
        ("polcy: {engine: sglang}\n", r"^polcy: no such setting.*Did you mean policy\?"),
        ("model: x\n", r"^model: no such setting.*Valid here: tasks, agent"),
        ("user: {modle: x}\n", r"^user\.modle: no such setting.*Did you mean user\.model\?"),
        ("user: {url: x}\n", r"^user\.url: no such setting.*Valid here: user\.kind, user\.model"),
        ("limits: 5\n", r"^limits is 5.*but it is a section.*limits\.max_steps"),
        ("tasks: {ids: create_task_1}\n", r"^tasks\.ids.*'create_task_1', not a list"),
        ("tasks: {ids: []}\n", r"^tasks\.ids.*is empty"),
        ("limits: {max_turns: yes}\n", r"^limits\.max_turns is True.*truth value"),
        ("policy: {sampling: {temperature: .nan}}\n", r"^policy\.sampling\.temperature is nan"),
        ("limits: {wall_seconds: .inf}\n", r"^limits\.wall_seconds is inf"),
        ("limits: {wall_seconds: 1.0e+300}\n", r"^limits\.wall_seconds is 1e\+300"),
        ("service: {actors: 1000000000}\n", r"^service\.actors is 1000000000"),
    ],
)
def test_a_file_that_says_something_else_than_it_seems_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parsed(text)


def test_anchors_and_merge_keys_are_no_duplicates():
    config = parsed(
        "policy: {script: &s {chatter: 0.5}}\nuser:\n  script:\n    <<: *s\n    early_stop: 0.25\n    chatter: 0.75\n"
    )
    assert (config.policy.script.chatter, config.user.script.chatter, config.user.script.early_stop) == (
        0.5,
        0.75,
        0.25,
    )


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ROLLOUT_LIMITS_MAX_TURNS", r"Did you mean ROLLOUT_LIMITS__MAX_TURNS\?"),
        ("ROLLOUT_POLICY__SAMPLING_TOP_P", r"Did you mean policy\.sampling\?|policy\.sampling_top_p: no such setting"),
        ("ROLLOUT_POLICY_SAMPLING_TOP_P", r"Did you mean ROLLOUT_POLICY__SAMPLING__TOP_P\?"),
        ("ROLLOUT_AGENTS", r"Did you mean ROLLOUT_AGENT\?"),
        ("ROLLOUT_BATCH_SIZE", r"sets nothing\. A setting's is ROLLOUT_SECTION__FIELD"),
        ("TAU2_USER_MODELS", r"Did you mean TAU2_USER_MODEL\?"),
    ],
)
def test_a_variable_that_looks_like_a_setting_and_sets_nothing_is_refused(name, remedy):
    with pytest.raises(ConfigError, match=rf"{remedy}"):
        load(environ={name: "40"})


def test_variables_of_others_are_left_alone():
    theirs = {
        "TAU2_DATA_DIR": "/data",
        "TAU2_LOG_LEVEL": "INFO",
        "MY_ROLLOUT_DIR": "/x",
        # What Kubernetes sets in every pod beside a service named rollout-policy-head-svc.
        "ROLLOUT_POLICY_HEAD_SVC_SERVICE_HOST": "10.0.0.1",
        "ROLLOUT_POLICY_HEAD_SVC_SERVICE_PORT": "8265",
        "ROLLOUT_POLICY_HEAD_SVC_SERVICE_PORT_DASHBOARD": "8265",
        "ROLLOUT_POLICY_HEAD_SVC_PORT": "tcp://10.0.0.1:8265",
        "ROLLOUT_POLICY_HEAD_SVC_PORT_8265_TCP": "tcp://10.0.0.1:8265",
        "ROLLOUT_POLICY_HEAD_SVC_PORT_8265_TCP_ADDR": "10.0.0.1",
    }
    assert load(environ=theirs) == load()
    with pytest.raises(ConfigError, match="Did you mean ROLLOUT_POLICY__HTTP_PORT"):
        load(environ={"ROLLOUT_POLICY_HTTP_PORT": "8000"})


def test_a_replica_s_variable_keeps_its_case():
    config = load(environ={"ROLLOUT_POLICY__ENV_VARS__NCCL_DEBUG": '"WARN"'})
    assert config.policy.env_vars == {"NCCL_DEBUG": "WARN"}


@pytest.mark.parametrize("old", ["policy.environment", "policy.environment_from"])
def test_the_name_of_an_earlier_release_is_refused_with_the_new_one(old):
    new = old.replace("environment", "env_vars")
    with pytest.raises(ConfigError) as caught:
        load({old: {"A": "1"}})
    assert caught.value.problem == f"{old}: no such setting (from argument)."
    assert caught.value.remedy == f"It is called {new} now."
    variable = f"ROLLOUT_{old.replace('.', '__').upper()}"
    with pytest.raises(ConfigError, match=f"environment variable {variable}__A.*It is called {new} now"):
        load(environ={f"{variable}__A": "1"})
    with pytest.raises(ConfigError, match=f"It is called {new} now"):
        parsed(f"policy: {{{old.removeprefix('policy.')}: {{A: '1'}}}}")
    with pytest.raises(ConfigError, match=f"It is called {new} now"):
        PolicyConfig(**{old.removeprefix("policy."): {}})


@pytest.mark.parametrize("variable", ["TAU2_DOMAIN", "ROLLOUT_TASKS__DOMAIN"])
def test_a_mix_can_be_written_as_text_wherever_a_domain_can(variable):
    assert load(environ={variable: "retail=2, airline=1"}).tasks.domain == {"retail": 2.0, "airline": 1.0}
    assert load({"tasks.domain": "retail=2,airline=0.5"}).tasks.domain == {"retail": 2.0, "airline": 0.5}
    assert parsed("tasks: {domain: 'mock=1'}").tasks.domain == {"mock": 1.0}


def test_part_of_a_section_given_as_a_mapping_leaves_the_rest_of_it_alone(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("limits: {max_turns: 3}\n")
    limits = load({"limits": {"max_steps": 5}}, path=path).limits
    assert (limits.max_turns, limits.max_steps) == (3, 5)


def test_what_holds_where_nothing_else_is_said_is_weaker_than_everything(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("limits: {max_turns: 3}\n")
    defaults = {"limits.max_turns": 9, "limits.max_steps": 9}
    limits = RolloutConfig.load(path, environ={}, defaults=defaults).limits
    assert (limits.max_turns, limits.max_steps) == (3, 9)


def test_an_override_leaves_what_was_not_set_as_not_set():
    assert load().with_overrides({"limits.max_turns": 7}).explicit() == {"limits.max_turns": 7}


@pytest.mark.parametrize(
    "make",
    [
        lambda: RolloutConfig(limits={"max_turns": 0}),
        lambda: RolloutConfig(limit={"max_turns": 1}),
        lambda: RolloutConfig(policy=5),
        lambda: RolloutConfig.load(5, environ={}),
        lambda: RolloutConfig.load("a\0b", environ={}),
        lambda: RolloutConfig.load(overrides=["limits.max_turns"], environ={}),
        lambda: RolloutConfig.load(overrides={5: 1}, environ={}),
        lambda: load().with_overrides("limits.max_turns=3"),
        lambda: load({"limits.max_turns.deep": 3}),
        lambda: load({"": 3}),
        lambda: load(environ={"ROLLOUT_LIMITS__MAX_TURNS": "2020-13-45"}),
        lambda: load(environ={"ROLLOUT_LIMITS__MAX_TURNS": "[" * 100_000}),
    ],
)
def test_whatever_is_wrong_with_settings_is_a_config_error_with_a_remedy(make):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.remedy


def test_every_setting_can_be_set_by_its_dotted_name():
    names = field_names()
    assert "policy.sampling.temperature" in names
    assert "user.script.latency.mean" in names
    config = load({"policy.sampling.temperature": 0.5, "user.script.latency.mean": 1.5})
    assert (config.policy.sampling.temperature, config.user.script.latency.mean) == (0.5, 1.5)


def test_every_setting_has_a_description_that_is_a_sentence():
    def bad(model, prefix=""):
        for name, info in model.model_fields.items():
            if (section := section_of(info.annotation)) is not None:
                yield from bad(section, f"{prefix}{name}.")
            elif not (info.description or "").endswith("."):
                yield f"{prefix}{name}"

    assert list(bad(RolloutConfig)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("agent", "discrete_time_audio_native_agent"), ("user.kind", "voice_streaming_user_simulator")],
)
def test_voice_and_full_duplex_are_refused_by_name_with_what_is_supported(name, value):
    with pytest.raises(ConfigError, match=rf"{name}.*voice and full-duplex conversations are not supported.* or "):
        load({name: value})


@pytest.mark.parametrize("retrieval", ["alltools", "terminal_use", "openai_embeddings", "no such"])
def test_a_search_that_needs_more_than_files_is_refused_with_those_that_do_not(retrieval):
    with pytest.raises(ConfigError, match=r"tasks.retrieval.*embeddings or a sandboxed shell.*bm25_grep"):
        load({"tasks.retrieval": retrieval})


def test_the_number_of_results_goes_with_a_search_that_counts_them():
    assert load({"tasks.retrieval": "bm25", "tasks.retrieval_top_k": 3}).tasks.searched == ("bm25", 3)
    with pytest.raises(ConfigError, match=r"tasks.retrieval_top_k.*grep_only"):
        load({"tasks.retrieval": "grep_only", "tasks.retrieval_top_k": 3})
