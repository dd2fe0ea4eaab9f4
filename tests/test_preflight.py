"""What is refused before any process is started, and what cannot be told beforehand."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

import rollout_service.cluster as cluster
import rollout_service.preflight as preflight
from rollout_service.cli.doctor import examine
from rollout_service.errors import ConfigError, ServiceError, StorageError, Tau2Error
from rollout_service.output import Output
from rollout_service.policy import engine_check
from tests.support.commands import command
from tests.support.episodes import settings

TOKENIZER = str(Path(__file__).parents[1] / "rollout_service/assets/tokenizer")


def served(model: Path | str, **overrides: object):
    return settings(policy__engine="sglang", policy__model=str(model), policy__tokenizer=TOKENIZER, **overrides)


@pytest.fixture
def nothing_starts(monkeypatch):
    """A machine without a cluster, on which starting one fails the test."""

    def started(*_: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(cluster, "connected", lambda: False)
    monkeypatch.setattr(cluster, "connect", started)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "0"], "n=0 is not a positive multiple"),
        (["--weight", "0"], "weight is 0"),
        (["--group-size", "0"], "group_size is 0"),
        (["-n", "2000000"], "more episodes than one collection takes"),
        (["--domain", "mock", "--task", "no_such_task"], "mock/base has no task 'no_such_task'"),
        (["--domain", "retail", "--set", "agent=solo"], "cannot be given to the solo agent"),
        (["-o", f"{__file__}/x.jsonl"], f"cannot be written: {__file__} is not a folder"),
        (["--set", "policy.tool_parser=no_such_parser"], "no_such_parser"),
        (
            ["--set", "policy.engine=sglang", "--set", "policy.model=/no/such/model"],
            "there is no folder '/no/such/model'",
        ),
        (["--set", "user.model=openai/gpt-4.1-mini"], "its provider's key is not set: OPENAI_API_KEY"),
        (
            [
                *("--domain", "mock", "--set", "evaluation.type=all_with_nl_assertions"),
                *("--set", "evaluation.judge.base_url=http://127.0.0.1:9"),
            ],
            "evaluation.judge.base_url: nothing answers at http://127.0.0.1:9",
        ),
    ],
)
def test_what_needs_no_cluster_is_refused_before_a_process_is_started(nothing_starts, monkeypatch, arguments, message):
    monkeypatch.setattr(engine_check, "check_engine", lambda policy: "")  # SGLang is not installed everywhere
    failed = command("collect", *arguments)
    assert failed.returncode == 2, failed.stderr
    assert message in failed.stderr
    assert "a cluster was started" not in failed.stderr


def test_a_file_of_other_settings_is_refused_before_a_process_is_started(nothing_starts, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"sche')
    (tmp_path / "x.jsonl.collection.json").write_text("{")
    failed = command("collect", "-o", path, "--resume")
    assert failed.returncode == 2
    assert "x.jsonl.collection.json cannot be read" in failed.stderr


def test_an_engine_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sglang" else real(name))
    with pytest.raises(ConfigError, match=r"package sglang is not installed\..*tau2-rollout-service\[sglang\]"):
        engine_check.check_engine(served("m").policy)
    assert engine_check.check_engine(settings().policy) == ""


def test_a_model_s_folder_has_a_configuration_and_weights(tmp_path):
    for name, message in (("/no/such", "there is no folder"), ("./m", "there is no folder"), ("a/b/c", "no folder")):
        with pytest.raises(ConfigError, match=message):
            engine_check.check_model(served(name).policy)
    assert engine_check.check_model(served("Qwen/Qwen3-0.6B").policy) is None, "a hub is not asked"
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        engine_check.check_model(served(tmp_path).policy)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no weights"):
        engine_check.check_model(served(tmp_path).policy)
    dummy = served(tmp_path, policy__engine_arguments={"load_format": "dummy"})
    assert engine_check.check_model(dummy.policy) == "config.json, weights of 0.0 GiB"
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    assert engine_check.check_model(served(tmp_path).policy) == "config.json, weights of 0.0 GiB"


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ({}, 1),
        ({"policy__replicas": 4, "policy__engine_arguments": {"tp_size": 2}}, 8),
        ({"policy__autoscaling": {"min_replicas": 2, "max_replicas": 9}}, 2),
        ({"policy__engine_arguments": {"device": "cpu"}}, 0),
        ({"policy__gpus_per_replica": 0.5}, 0.5),
        ({"policy__application": "policy"}, 0),
    ],
)
def test_replicas_that_find_no_gpus_are_refused(overrides, needed):
    config = served("m", **overrides)
    assert engine_check.needed_gpus(config.policy) == needed
    engine_check.check_gpus(config, needed)
    if needed:
        with pytest.raises(ServiceError, match=f"ask for {needed:g} GPUs, and there are 0"):
            engine_check.check_gpus(config, 0)


def test_a_served_user_needs_its_gpus_beside_the_policy_s():
    own = {"model": "u", "engine": "sglang", "replicas": 2, "gpus_per_replica": 0.5}
    config = served("m", user__serve=own)
    engine_check.check_gpus(config, 2)
    with pytest.raises(ServiceError, match=r"for 1 GPUs, the user simulator's for 1, and there are 1\."):
        engine_check.check_gpus(config, 1)


def test_a_key_is_missed_only_where_the_provider_would_look_for_it(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    preflight.check_keys(settings())
    preflight.check_keys(settings(user__model="openai/m", user__base_url="http://127.0.0.1:9/v1"))
    preflight.check_keys(settings(user__model="openai/m", user__api_key_var="MY_KEY"))
    preflight.check_keys(settings(user__model="bedrock/anthropic.claude-3"))
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        preflight.check_keys(settings(user__model="openai/m"))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    preflight.check_keys(settings(user__model="openai/m"))


def test_a_judge_that_no_task_asks_need_not_listen():
    dead = {"tasks__domain": "retail", "evaluation__judge": {"base_url": "http://127.0.0.1:9"}}
    preflight.check_judge(settings(**dead))
    with pytest.raises(ServiceError, match="nothing answers at"):
        preflight.check_judge(settings(**dead, evaluation__type="nl_assertions"))


def test_an_agent_is_refused_where_it_can_play_no_task():
    preflight.check_agent(settings(agent="gt"))
    with pytest.raises(Tau2Error, match="solo agent"):
        preflight.check_agent(settings(agent="solo"))


def test_a_file_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.jsonl").touch()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path / "x.jsonl")
    with pytest.raises(StorageError, match=r"x\.jsonl is not writable"):
        Output(tmp_path / "x.jsonl", "append")
    Output(tmp_path / "new" / "y.jsonl")


def test_doctor_tells_what_failed_from_what_was_not_checked(tmp_path):
    here = {finding.what: finding for finding in examine(served(tmp_path))}
    assert here["policy's model"].ok is False
    assert "has no config.json" in here["policy's model"].text
    assert here["cluster"].ok is None
    assert here["requests"].ok is None
    there = {finding.what: finding for finding in examine(served(tmp_path), "127.0.0.1:1")}
    assert there["policy's model"].ok is None, "the cluster's nodes may have it"
    assert "needed on the cluster's nodes" in there["policy's model"].text
    assert there["cluster"].ok is False
