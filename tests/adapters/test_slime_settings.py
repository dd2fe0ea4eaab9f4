"""What slime's arguments mean, and what is refused of them; the prompt files."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from rollout_service.adapters.prompts import prepare_data
from rollout_service.adapters.slime import settings as slime_settings
from rollout_service.cli import app, main
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, StorageError, TaskError
from rollout_service.tau2 import tasks
from tests.support import slime

DEPLOY = Path(__file__).parents[2] / "deploy/slime"

KEY = r"\b(sk|key)[-_][\w-]{8,}"
"""What a key of a model's API looks like."""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hf_checkpoint": None}, "--hf-checkpoint"),
        ({"rollout_top_p": 0.9}, "--rollout-top-p is 0.9"),
        ({"rollout_top_k": 20}, "--rollout-top-k is 20"),
        ({"group_rm": True}, "--group-rm"),
        ({"use_rollout_routing_replay": True}, "--use-rollout-routing-replay"),
        ({"mask_offpolicy_in_partial_rollout": True}, "--mask-offpolicy-in-partial-rollout: slime masks"),
        ({"custom_rm_path": "my.rm"}, "--custom-rm-path is 'my.rm'"),
        ({"eval_custom_rm_path": "my.rm"}, "--eval-custom-rm-path is 'my.rm'"),
        ({"rm_type": "math"}, "--rm-type is 'math'"),
        (
            {"apply_chat_template_kwargs": {"enable_thinking": False}},
            "--apply-chat-template-kwargs is .*enable_thinking",
        ),
        ({"multimodal_keys": {"image": "images"}}, "--multimodal-keys"),
        ({"sglang_enable_deterministic_inference": True}, "--sglang-enable-deterministic-inference"),
        ({"use_opd": True, "opd_type": "sglang"}, "--opd-type is sglang"),
        ({"rollout_temperature": 0.0}, "--rollout-temperature is 0.0"),
        ({"rollout_max_prompt_len": 2048}, "--rollout-max-prompt-len is 2048"),
        ({"rollout_max_context_len": None, "rollout_max_prompt_len": 2048}, "--rollout-max-prompt-len is 2048"),
        ({"eval_max_prompt_len": 2048}, "--eval-max-prompt-len is 2048"),
        ({"eval_max_context_len": 131072}, "--eval-max-context-len is 131072"),
        ({"custom_reward_post_process_path": None}, "adapters.slime.reward_post_process"),
        ({"rollout_service_conf": "x.yaml"}, "rollout_service_conf: no such setting"),
    ],
)
def test_what_would_train_wrongly_is_refused_with_the_flag_s_name(fields, said):
    with pytest.raises(ConfigError, match=said):
        slime_settings.check_arguments(slime.make_args(**fields))


AS_SLIME_FILLS_IN = {
    "mask_offpolicy_in_partial_rollout": False,
    "custom_rm_path": None,
    "rm_type": None,
    "apply_chat_template_kwargs": {},
    "multimodal_keys": None,
    "use_opd": False,
    "opd_type": None,
    "rollout_max_prompt_len": 65535,
    "eval_max_prompt_len": None,
    "eval_max_context_len": 65536,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        AS_SLIME_FILLS_IN,
        {"use_opd": True, "opd_type": "megatron"},
        {"advantage_estimator": "ppo", "custom_reward_post_process_path": None},
    ],
)
def test_what_a_run_script_sets_is_accepted(fields):
    slime_settings.check_arguments(slime.make_args(**fields))


def test_the_policy_is_behind_slime_s_router_with_the_checkpoint_s_tokenizer():
    args = slime.make_args("http://10.0.0.7:3000", rollout_max_context_len=8192)
    policy = slime_settings.service_config(args).policy
    assert (policy.engine, policy.url, policy.tokenizer) == ("http", "http://10.0.0.7:3000", args.hf_checkpoint)
    assert policy.context_length == 8192


@pytest.mark.parametrize(
    ("flags", "length"),
    [
        ({"rollout_max_context_len": 8192, "sglang_context_length": 4096}, 4096),
        ({"rollout_max_context_len": None, "sglang_context_length": 4096}, 4096),
        ({"rollout_max_context_len": 2048, "sglang_context_length": 4096}, 2048),
    ],
)
def test_the_context_is_no_more_than_slime_gives_its_engines(flags, length):
    args = slime.make_args("http://10.0.0.7:3000", **flags)
    assert slime_settings.service_config(args).policy.context_length == length


def test_settings_come_from_the_file_then_from_what_goes_over_it(tmp_path):
    file = tmp_path / "service.yaml"
    file.write_text("policy: {context_length: 4096}\nlimits: {max_turns: 7}\nservice: {slots: 8}\n")
    args = slime.make_args(rollout_service_config=str(file), rollout_service_set={"service.slots": 3})
    config = slime_settings.service_config(args)
    assert (config.policy.context_length, config.limits.max_turns, config.service.slots) == (4096, 7, 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sglang_router_ip": None}, "no router"),
        ({"rollout_service_set": {"limits.max_turn": 3}}, "limits.max_turn: no such setting"),
        ({"rollout_service_set": "limits"}, "rollout_service_set is 'limits'"),
        ({"rollout_service_config": "/nowhere.yaml"}, "/nowhere.yaml cannot be read"),
        ({"rollout_service_set": {"policy.history": "template"}, "partial_rollout": True}, "--partial-rollout"),
        ({"rollout_service_set": {"policy.history": "template"}, "log_passrate": True}, "--log-passrate"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        slime_settings.service_config(slime.make_args(**fields))


def test_slime_s_sampling_parameters_become_the_service_s():
    assert slime_settings.sampling(slime.SAMPLING) == Sampling(temperature=0.7, max_new_tokens=512)
    assert slime_settings.sampling({"top_k": 20, "stop": [], "stop_token_ids": [7]}) == Sampling(
        top_k=20, stop_token_ids=(7,)
    )


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"stop": ["###"]}, "stop="),
        ({"sampling_seed": 1}, "sampling_seed=1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_a_sampling_parameter_that_would_be_lost_is_refused(params, said):
    with pytest.raises(ConfigError, match=said):
        slime_settings.sampling(slime.SAMPLING | params)


def test_prepared_prompts_name_their_tasks(tmp_path):
    path = tmp_path / "prompts.jsonl"
    assert prepare_data(path, ["mock", "airline"], ["base"]) == 9 + 50
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = [slime_settings.task_of(slime.make_sample(prompt=r["prompt"], metadata=r["metadata"])) for r in rows]
    assert found == tasks.references("mock") + tasks.references("airline")
    assert [row["prompt"] for row in rows[:3]] == ["0", "1", "2"]


def test_prompts_are_not_overwritten_unasked(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("mine")
    with pytest.raises(StorageError, match="exists"):
        prepare_data(path, ["mock"], ["base"])
    assert path.read_text() == "mine"
    with pytest.raises(StorageError, match=r"\.jsonl"):
        prepare_data(tmp_path / "prompts.json", ["mock"], ["base"])
    with pytest.raises(TaskError, match="nowhere"):
        prepare_data(tmp_path / "other.jsonl", ["nowhere"], ["base"])


def test_the_command_line_leaves_out_what_the_service_leaves_out(tmp_path):
    settings, path = tmp_path / "settings.yaml", tmp_path / "prompts.jsonl"
    settings.write_text("policy: {tokenizer: model}\ntasks: {domain: airline, exclude: ['0', '2']}")
    with pytest.raises(SystemExit) as ended:
        main(["prepare-data", "--domain", "airline", "--split", "base", "-o", str(path), "--config", str(settings)])
    assert ended.value.code == 0
    named = [json.loads(line)["metadata"]["task_id"] for line in path.read_text().splitlines()]
    assert (len(named), named[:2]) == (48, ["1", "3"])


def test_the_command_line_writes_prompts(tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["prepare-data", "--domain", "retail", "--domain", "airline", "--split", "test", "-o", str(path)])
    assert ended.value.code == 0
    assert "60 prompts are in" in capsys.readouterr().err
    assert len(path.read_text().splitlines()) == 60


# What a run starts from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["instruct", "thinking"])
def test_the_settings_of_a_run_are_accepted(variant):
    custom = yaml.safe_load((DEPLOY / f"{variant}.yaml").read_text())
    args = slime.make_args(**custom)
    slime_settings.check_arguments(args)
    config = slime_settings.service_config(args)
    assert config.user_kind == "llm"


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_no_key_stands_in_a_file(path):
    assert not re.search(KEY, path.read_text())


def test_keys_of_today_are_seen():
    for prefix in ("sk-", "sk-proj-", "sk-ant-api03-", "key-"):
        assert re.search(KEY, f"user.api_key: {prefix}{'Ab3_-' * 8}")
    assert not re.search(KEY, "user.api_key_var: OPENAI_API_KEY")


def test_the_run_script_names_hooks_and_commands_that_exist():
    script = (DEPLOY / "run.sh").read_text()
    hooks = importlib.import_module(re.search(r"^hooks=(\S+)$", script, re.MULTILINE)[1])
    named = re.findall(r"\$hooks\.(\w+)", script)
    assert set(named) <= set(hooks.__all__)
    assert "reward_post_process" in named
    command = typer.main.get_command(app).commands["prepare-data"]
    for line in re.findall(r"^rollout-service prepare-data (.+)$", script, re.MULTILINE):
        command.make_context("prepare-data", line.replace('"', "").split())


def test_the_run_script_submits_a_job_that_runs_in_any_directory(tmp_path):
    """A Ray job without a working directory runs in the raylet's, not where it was submitted."""
    for folder in ("slime/scripts/models", "model", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "slime/train.py").touch()
    (tmp_path / "slime/scripts/models/qwen3-4B-Instruct-2507.sh").write_text("MODEL_ARGS=(--swiglu)")
    for command, does in (("ray", "printf '%s\\n' \"$@\""), ("rollout-service", 'touch "${@: -1}"')):
        (tmp_path / "bin" / command).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / "bin" / command).chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLIME": "slime", "MODEL": "model", "DATA": "data"}
    ran = subprocess.run(
        [DEPLOY / "run.sh", "instruct"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    submitted = ran.stdout.splitlines()
    flag = {name: submitted[submitted.index(name) + 1] for name in ("python3", "--prompt-data", "--custom-config-path")}
    assert flag["python3"] == str(tmp_path / "slime/train.py")
    for path in (*flag.values(), submitted[submitted.index("--hf-checkpoint") + 1]):
        assert Path(path).is_absolute()
        assert Path(path).exists()
    variables = json.loads(submitted[submitted.index("--runtime-env-json") + 1])["env_vars"]
    assert variables["PYTHONPATH"].split(":")[0] == str(tmp_path / "slime")
