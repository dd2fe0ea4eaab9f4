"""Which trajectories an export takes, and what it refuses."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.errors import ConfigError, StorageError
from rollout_service.export.exporting import export
from rollout_service.export.place import new_at
from rollout_service.export.selection import TOKENS, Filter, Selected, Selection
from rollout_service.record import storage
from rollout_service.record.trajectory import Outcome
from rollout_service.record.writing_lock import writing_lock
from rollout_service.report.reading import SAME
from tests.support.commands import command
from tests.support.trajectories import make_segment, make_trajectory


def scored(name, task="1", **overrides):
    base = make_trajectory(trajectory_id=name, segments=[make_segment(seed=int(overrides.pop("tokens", 0)))])
    return replace(base, task=replace(base.task, task_id=task), **overrides)


def taken(path, same=TOKENS, **wanted):
    selected = Selected([path], Selection(**wanted), same)
    return [trajectory.trajectory_id for trajectory in selected], dict(selected.left_out)


def test_every_trajectory_is_taken_or_counted_with_the_reason(tmp_path):
    path = tmp_path / "all.jsonl"
    storage.write(
        path,
        [
            scored("good"),
            scored("bad", reward=0.0),
            scored("cancelled", reward=None, outcome=Outcome.ABORTED, termination_reason="cancelled"),
            scored("slow", reward=None, termination_reason="wall_time"),
            replace(scored("silent"), segments=[]),
            scored("elsewhere", task="2"),
        ],
    )
    assert taken(path) == (
        ["good", "bad", "elsewhere"],
        {"cancelled": 1, "without a reward": 1, "in which the policy never spoke": 1},
    )
    assert taken(path, reward=1.0)[0] == ["good", "elsewhere"]
    assert taken(path, unique=True)[0] == ["good", "elsewhere"]
    assert taken(path, per_task=1) == (
        ["good", "elsewhere"],
        {
            "beyond the first 1 of the task": 1,
            "cancelled": 1,
            "without a reward": 1,
            "in which the policy never spoke": 1,
        },
    )
    with pytest.raises(StorageError, match=r"no trajectory of the domain 'airline'.* There are episodes of retail"):
        taken(path, domain="airline")


def test_only_equal_tokens_of_one_task_are_the_same_conversation(tmp_path):
    path = tmp_path / "all.jsonl"
    storage.write(path, [scored("a"), scored("b", tokens=9), scored("c"), scored("d", task="2")])
    assert taken(path, unique=True) == (["a", "b", "d"], {"with the same tokens as another of the task": 1})


def test_a_trajectory_that_comes_twice_is_refused(tmp_path):
    path = tmp_path / "all.jsonl"
    storage.write(path, [scored("a"), scored("b")])
    with pytest.raises(StorageError, match=r"'a' of .* came before"):
        list(Selected([path, path], Selection(), TOKENS))


@pytest.mark.parametrize("field", ["tokenizer_fingerprint", "model"])
def test_trajectories_of_another_run_are_refused_with_the_field(tmp_path, field):
    path = tmp_path / "all.jsonl"
    made = [(scored(name), {field: f"{name}'s"}) for name in ("a", "b")]
    storage.write(path, [replace(each, provenance=replace(each.provenance, **values)) for each, values in made])
    with pytest.raises(StorageError, match=rf"'b' has provenance.{field} \"b's\", and those before it have \"a's\""):
        taken(path, SAME)
    if field != "tokenizer_fingerprint":
        assert taken(path)[0] == ["a", "b"]


def test_a_file_that_is_being_written_or_broke_off_is_refused(tmp_path):
    path = tmp_path / "all.jsonl"
    storage.write(path, [scored("a"), scored("b")])
    with writing_lock(path), pytest.raises(StorageError, match="A process still writes to"):
        taken(path)
    os.truncate(path, path.stat().st_size - 9)
    with pytest.raises(StorageError, match="line 2 is unfinished"):
        taken(path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_is_replaced_only_on_demand_and_only_by_a_whole_one(tmp_path, kind):
    def make(place, text):
        if kind == "folder":
            place.mkdir()
            place /= "data"
        place.write_text(text)

    def fail_over(place):
        make(place, "half")
        raise OSError("the disk is full")

    def text():
        return (path / "data" if kind == "folder" else path).read_text()

    path = tmp_path / "out"
    with new_at(path) as place:
        make(place, "old")
        assert not path.exists()
    with pytest.raises(StorageError, match="exists already"), new_at(path):
        pass
    with pytest.raises(StorageError, match="the disk is full"), new_at(path, overwrite=True) as place:
        fail_over(place)
    assert text() == "old"
    with new_at(path, overwrite=True) as place:
        make(place, "new")
    assert (text(), [each.name for each in tmp_path.iterdir()]) == ("new", ["out"])


def test_an_option_without_effect_is_refused(tmp_path):
    for options, words in [
        ({"to": "pdf"}, "to is 'pdf'"),
        ({"tokenizer": "t"}, "tokenizer has no effect in an export to tau2"),
        ({"reward": 1.0}, "would change its pass"),
        ({"per_task": 0}, "per_task is 0"),
    ]:
        with pytest.raises(ConfigError, match=words):
            export(tmp_path / "a.jsonl", **({"to": "tau2", "output": tmp_path / "a.json"} | options))


@pytest.mark.parametrize(("to", "ending"), [("tau2", ".json"), ("inspect", ".eval"), ("sft", ".jsonl")])
def test_an_output_with_another_ending_than_the_format_s_is_refused(tmp_path, to, ending):
    with pytest.raises(StorageError, match=rf"a\.txt: the name does not end in \{ending}"):
        export(tmp_path / "a.jsonl", to, tmp_path / "a.txt")


def test_an_export_never_takes_the_place_of_what_it_reads(tmp_path):
    path = tmp_path / "all.jsonl"
    storage.write(path, [scored("a")])
    before = path.read_bytes()
    with pytest.raises(StorageError, match="is one of the files that are exported"):
        export([path], "sft", tmp_path / "." / "all.jsonl", overwrite=True)
    for place in ("", "data"):
        folder = tmp_path / "own" / place
        storage.write(folder / "run.jsonl", [scored("a")])
        with pytest.raises(StorageError, match="which is exported, lies in"):
            export([folder / "run.jsonl"], "hf", tmp_path / "own", overwrite=True)
    assert path.read_bytes() == before


def test_only_an_earlier_export_is_replaced(tmp_path):
    path = tmp_path / "all.jsonl"
    storage.write(path, [scored("a")])
    for _ in range(2):
        export(path, "hf", tmp_path / "dataset", overwrite=True)
    (tmp_path / "dataset" / "data" / "notes.txt").write_text("mine")
    (tmp_path / "own" / "src").mkdir(parents=True)
    (tmp_path / "own.jsonl").mkdir()
    for to, name in (("hf", "dataset"), ("hf", "own"), ("hf", "all.jsonl"), ("sft", "own.jsonl")):
        with pytest.raises(StorageError):
            export(path if name != "all.jsonl" else tmp_path / "b.jsonl", to, tmp_path / name, overwrite=True)
    assert (tmp_path / "dataset" / "data" / "notes.txt").read_text() == "mine"
    assert path.is_file()
    assert (tmp_path / "own" / "src").is_dir()
    assert (tmp_path / "own.jsonl").is_dir()


def test_the_command_says_what_is_left_out_and_why(tmp_path):
    path = tmp_path / "all.parquet"
    storage.write(
        path, [scored("a"), scored("b", reward=0.0), scored("c", reward=None, termination_reason="wall_time")]
    )
    done = command("export", path, "--to", "hf", "--output", tmp_path / "folder", "--reward", 1.0)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"{tmp_path / 'folder'} has 1 of 3 trajectories.",
        "Left out: 1 with a reward below 1.",
        "Left out: 1 without a reward.",
    ]
    again = command("export", path, "--to", "hf", "--output", tmp_path / "folder")
    assert again.returncode == 2
    assert "exists already. Choose another --output, or give --overwrite." in again.stderr


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.sampled_from([None, 0.0, 1.0])), max_size=8),
    st.sampled_from([None, 1.0]),
    st.booleans(),
    st.sampled_from([None, 1, 2]),
)
def test_what_is_taken_obeys_every_filter_and_is_taken_again(found, reward, unique, per_task):
    stored = [
        scored(str(number), task=str(task), tokens=tokens, reward=value)
        for number, (task, tokens, value) in enumerate(found)
    ]
    chosen = Filter(Selection(reward=reward, unique=unique, per_task=per_task))
    taken = [trajectory for trajectory in stored if not chosen.reason(trajectory)]
    assert all(each.reward is not None and each.reward >= (reward or 0.0) for each in taken)
    tasks = Counter(each.task.task_id for each in taken)
    assert max(tasks.values(), default=0) <= (per_task or len(stored))
    conversations = Counter((each.task.task_id, each.segments[0].token_ids.tobytes()) for each in taken)
    assert not unique or set(conversations.values()) <= {1}
    again = Filter(Selection(reward=reward, unique=unique, per_task=per_task))
    assert [trajectory for trajectory in taken if not again.reason(trajectory)] == taken
    if reward is None and not unique and per_task is None:
        assert taken == [trajectory for trajectory in stored if trajectory.reward is not None]
