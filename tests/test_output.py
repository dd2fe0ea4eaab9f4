"""The output file of a collection: resumed, appended to, overwritten."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rollout_service.attaching as attaching
from rollout_service.collecting.planning import Planner
from rollout_service.config import RolloutConfig
from rollout_service.config.root import field_names
from rollout_service.config.shaping import PLACE_AND_PACE, shaping
from rollout_service.errors import StorageError, TaskError
from rollout_service.output import Output
from rollout_service.record import storage
from rollout_service.record.manifest import manifest_path, read_manifest
from rollout_service.record.trajectory import Outcome
from tests.support import episodes
from tests.support.plans import TASKS, played
from tests.support.trajectories import as_text, make_trajectory

both_formats = pytest.mark.parametrize("ending", ["jsonl", "parquet"])
CONFIG = episodes.settings(tasks__domain="mock")


@contextlib.contextmanager
def begun(path: Path, mode: Any, config: RolloutConfig = CONFIG, **asked: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The writer of a collection that the service has accepted, and its groups."""
    output = Output(path, mode)
    arguments = output.ask(config, config, **asked)
    selection = {name: value for name, value in arguments.items() if name not in ("n", "group_size")}
    counts = {name: arguments[name] for name in ("n", "group_size")}
    request = attaching.collection_request(config, config, selection, **counts)
    plan = Planner(config, TASKS).plan(request, version=0)
    stream: Any = SimpleNamespace(
        collection_id=plan.collection.collection_id, first_draw=plan.first_draw, episodes=plan.collection.size
    )
    with output.writing(stream, arguments) as writer:
        yield writer, [[make_trajectory(segments=[], **r.identity()) for r in group] for group in played(plan)]


def collect(path: Path, mode: Any, groups: int | None = None, config: RolloutConfig = CONFIG, **asked: Any) -> None:
    """Collect so many groups of a collection into the file, then stop without a word."""
    with begun(path, mode, config, **asked) as (writer, all_groups):
        for group in all_groups[:groups]:
            writer.append(group)


def in_order(path: Path) -> list[str]:
    found = sorted(storage.read(path), key=lambda t: (t.group_id, t.sample_index))
    return [as_text(trajectory) for trajectory in found]


def drawn(path: Path) -> list[tuple[str, int]]:
    return [(trajectory.task.task_id, trajectory.seed) for trajectory in storage.read(path)]


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_file_that_was_cut_anywhere_is_resumed_to_what_it_would_have_been(data):
    ending = data.draw(st.sampled_from(["jsonl", "parquet"]))
    group_size = data.draw(st.integers(1, 3))
    n = data.draw(st.none() | st.integers(1, 5).map(lambda groups: groups * group_size))
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        path = Path(folder, f"x.{ending}")
        collect(path, "new", n=n, group_size=group_size, seed=data.draw(st.none() | st.just(3)))
        whole = in_order(path)
        for _ in range(data.draw(st.integers(1, 2))):
            last = path if ending == "jsonl" else max(path.glob("part-*"), default=None)  # None: all was cut away
            if last is not None:
                os.truncate(last, last.stat().st_size * data.draw(st.integers(0, 100_000)) // 100_000)
            collect(path, "resume", groups=data.draw(st.none() | st.integers(0, 3)))
        collect(path, "resume", n=n, group_size=group_size)
        assert in_order(path) == whole
        assert Output(path, "resume").is_complete


@both_formats
def test_append_numbers_on_from_what_is_there(ending, tmp_path):
    path, longer = tmp_path / f"x.{ending}", tmp_path / f"y.{ending}"
    for n in (8, 4, 4):
        collect(path, "append", n=n, group_size=2)
    collect(longer, "new", n=16, group_size=2)
    assert drawn(path) == drawn(longer)
    assert len(set(drawn(path))) == 16


def test_what_a_sampler_drew_that_learns_is_not_resumed_but_appended_to(tmp_path):
    path = tmp_path / "x.jsonl"
    collect(path, "new", groups=1, n=4, group_size=2, sampler="pass_rate")
    with pytest.raises(TaskError, match=r"cannot be continued: nobody can say which tasks sampler pass_rate drew"):
        collect(path, "resume")
    collect(path, "append", n=4, group_size=2, sampler="pass_rate")
    assert len({seed for _, seed in drawn(path)}) == len(storage.read(path)) == 6


def test_a_file_that_was_begun_before_there_were_samplers_is_resumed_and_numbered_on(tmp_path):
    path, longer = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    collect(path, "new", groups=1, n=4, group_size=2)
    manifest = json.loads(manifest_path(path).read_text())
    learned = ("tasks.sampler", "tasks.weights", "tasks.pass_rate_floor", "tasks.pass_rate_memory")
    for name in learned:
        del manifest["collections"][0]["settings"][name]
    manifest_path(path).write_text(json.dumps(manifest))
    collect(path, "resume")
    collect(path, "append", n=2, group_size=2)
    collect(longer, "new", n=6, group_size=2)
    assert drawn(path) == drawn(longer)


def test_a_selection_of_its_own_is_numbered_on_its_own_and_only_the_last_collection_is_resumed(tmp_path):
    path = tmp_path / "x.jsonl"
    first = {"n": 2, "ids": ["create_task_1"]}
    collect(path, "append", **first)
    collect(path, "append", n=2, seed=9)
    collect(path, "append", groups=1, **first)
    collect(path, "resume")
    repeated = [t for t in storage.read(path) if t.task.task_id == "create_task_1"]
    assert len({t.seed for t in repeated[:2] + repeated[-2:]}) == 4
    assert len(storage.read(path)) == 6


def test_a_file_of_an_older_release_is_numbered_on_after_its_highest_group_but_not_resumed(tmp_path):
    path = tmp_path / "x.jsonl"
    collect(path, "new", n=3)
    before = drawn(path)
    manifest_path(path).unlink()
    with pytest.raises(StorageError, match=r"cannot be resumed: .*collection\.json is not there"):
        Output(path, "resume")
    collect(path, "append", n=2)
    assert len(set(drawn(path))) == 5
    collect(path, "append", n=2)
    assert drawn(path)[:3] == before
    assert len(set(drawn(path))) == 7


@pytest.mark.parametrize(
    ("asked", "overrides", "difference"),
    [
        ({"n": 6}, {}, "n was 4 and is 6"),
        ({"group_size": 1}, {}, "group_size was 2 and is 1"),
        ({"seed": 4}, {}, "tasks.seed was 0 and is 4"),
        ({"domain": "retail"}, {}, "tasks.domain was 'mock' and is 'retail'"),
        ({"sampling": {"temperature": 0.5}}, {}, "policy.sampling.temperature was 1.0 and is 0.5"),
        ({}, {"limits__max_turns": 7}, "limits.max_turns was 30 and is 7"),
        ({}, {"tasks__ids": ["create_task_1"]}, r"tasks.ids was None and is \['create_task_1'\]"),
        ({"n": 2}, {"agent": "gt"}, "n was 4 and is 2; agent was 'llm' and is 'gt'"),
    ],
)
def test_other_settings_are_refused_with_the_difference_and_cost_nothing(asked, overrides, difference, tmp_path):
    path = tmp_path / "x.jsonl"
    collect(path, "new", groups=1, n=4, group_size=2)
    before = path.read_bytes(), manifest_path(path).read_bytes()
    config = episodes.settings(**{"tasks__domain": "mock"} | overrides)
    with pytest.raises(StorageError, match=f"collected with other settings: {difference}"):
        Output(path, "resume").ask(config, config, **asked)
    assert (path.read_bytes(), manifest_path(path).read_bytes()) == before


def test_place_and_pace_may_differ_and_what_a_start_fills_in(tmp_path):
    path = tmp_path / "x.jsonl"
    collect(path, "new", groups=1, config=episodes.settings(tasks__domain="mock", policy__context_length=9000), n=4)
    moved = episodes.settings(tasks__domain="mock", service__slots=3, policy__timeout_seconds=5.0)
    collect(path, "resume", config=moved)
    assert len(set(drawn(path))) == 4


def test_a_file_is_resumed_with_the_date_that_its_prompts_have(tmp_path):
    path = tmp_path / "x.jsonl"
    collect(path, "new", groups=1, config=episodes.settings(tasks__domain="mock", policy__date="2026-11-26"), n=4)
    output, today = Output(path, "resume"), episodes.settings(tasks__domain="mock", policy__date="2026-11-27")
    with pytest.raises(StorageError, match=r"policy\.date was '2026-11-26' and is '2026-11-27'"):
        output.ask(CONFIG, today)
    dated = output.dated(CONFIG)
    assert (dated.policy.date, output.dated(today)) == ("2026-11-26", today)
    assert output.ask(dated, dated)["n"] == 4
    assert Output(path, "append").dated(CONFIG) == CONFIG


def test_every_setting_of_place_and_pace_exists_and_all_others_are_compared():
    names = field_names()
    for beginning in PLACE_AND_PACE:
        assert any(name.startswith(beginning) for name in names), beginning
    compared = shaping(CONFIG)
    assert {"policy.model", "user.model", "limits.max_turns", "tasks.seed", "evaluation.type"} <= compared.keys()
    assert "service.slots" not in compared
    json.dumps(compared)


@both_formats
def test_overwrite_replaces_the_old_file_only_with_the_first_whole_group(ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    collect(path, "new", n=2, seed=1)
    old = in_order(path)
    with begun(path, "overwrite", n=4, group_size=2, seed=2) as (writer, groups):
        assert in_order(path) == old
        writer.append([])
        assert in_order(path) == old
        writer.append(groups[0])
        assert in_order(path) == sorted(map(as_text, groups[0]))
    collect(path, "resume")
    assert len(storage.read(path)) == 4
    collect(path, "overwrite", groups=0, n=2, seed=3)
    assert len(storage.read(path)) == 4, "a collection that gave nothing costs nothing"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("killed_before", ["rename", "second rename", "removal", "end of the removal"])
def test_a_folder_whose_replacement_was_cut_off_has_its_place_again_with_the_next_writer(killed_before, tmp_path):
    path, old, new = tmp_path / "x.parquet", tmp_path / ".old-x.parquet", tmp_path / ".new-x.parquet"
    collect(path, "new", n=1, seed=1)
    collect(tmp_path / "y.parquet", "new", n=2, seed=2)
    (tmp_path / "y.parquet").rename(new)
    if killed_before != "rename":
        path.rename(old)
    if "removal" in killed_before:
        new.rename(path)
    if killed_before == "end of the removal":
        next(old.glob("part-*")).unlink()
    if killed_before == "second rename":
        with pytest.raises(StorageError, match="Its replacement was cut off"):
            storage.read(path)
    output = Output(path, "resume")
    assert output.is_complete
    assert len(storage.read(path)) == (1 if killed_before == "rename" else 2)
    assert not old.exists()


def test_a_process_that_was_killed_between_file_and_manifest_is_noticed(tmp_path):
    path = tmp_path / "x.jsonl"
    collect(path, "new", n=2, seed=1)
    old = manifest_path(path).read_bytes()
    collect(path, "overwrite", groups=1, n=2, seed=2)
    manifest_path(path).write_bytes(old)
    with pytest.raises(StorageError, match="does not name the file's collection"):
        Output(path, "resume")


@both_formats
def test_aborted_episodes_are_taken_out_and_played_again(ending, tmp_path):
    path, calm = tmp_path / f"x.{ending}", tmp_path / f"calm.{ending}"
    with begun(path, "new", n=6, group_size=2, seed=4) as (writer, groups):
        writer.append(groups[0])
        for group in groups[1:]:
            aborted = dataclasses.replace(group[0], outcome=Outcome.ABORTED, reward=None)
            writer.append([aborted, group[1]])
        storage.write(calm, [trajectory for group in groups for trajectory in group])
    output = Output(path, "resume")
    assert (output.stored, output.aborted, output.is_complete) == (4, 2, False)
    with begun(path, "resume") as (writer, groups):
        assert [len(group) for group in groups] == [1, 1]
        assert len(storage.read(path)) == 4
        for group in groups:
            writer.append(group)
    assert in_order(path) == in_order(calm)
    assert Output(path, "resume").is_complete
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_of_a_collection_that_is_opened_again_the_file_takes_what_it_lacks(tmp_path):
    path = tmp_path / "x.jsonl"
    with begun(path, "new", n=6, group_size=2, seed=4) as (writer, groups):
        aborted = [dataclasses.replace(each, outcome=Outcome.ABORTED, reward=None) for each in groups[1]]
        writer.append(groups[0])
        writer.append([aborted[0]])
    output = Output(path, "resume")
    assert (output.stored, output.left) == (2, 4)
    assert output.collection_id == groups[0][0].collection_id
    assert output.lacking(groups[0]) == []
    assert output.lacking([groups[1][0], aborted[1]]) == [groups[1][0]], "what is aborted is played again"
    assert output.lacking(groups[2]) == groups[2]


def test_a_part_of_aborted_episodes_alone_goes(tmp_path):
    path = tmp_path / "x.parquet"
    with begun(path, "new", n=2, seed=4) as (writer, groups):
        writer.append(groups[0])
        writer.append([dataclasses.replace(groups[1][0], outcome=Outcome.ABORTED)])
    collect(path, "resume")
    assert [t.outcome for t in storage.read(path)] == [Outcome.COMPLETED] * 2


@both_formats
@pytest.mark.parametrize("mode", ["append", "resume"])
def test_what_breaks_off_at_the_end_of_a_file_is_dropped_before_it_grows(ending, mode, tmp_path):
    path = tmp_path / f"x.{ending}"
    collect(path, "new", n=3, seed=1)
    last = path if ending == "jsonl" else max(path.glob("part-*"))
    last.write_bytes(last.read_bytes()[:-20])
    collect(path, mode, **({"n": 1, "seed": 1} if mode == "append" else {}))
    assert len(storage.read(path)) == 3


@pytest.mark.parametrize("damage", [b"{}", b"[", b'{"version": 1, "collections": 3, "others": []}'])
def test_a_damaged_manifest_is_refused_and_one_of_a_newer_release_is_named(damage, tmp_path):
    path = tmp_path / "x.jsonl"
    collect(path, "new", n=2)
    manifest_path(path).write_bytes(damage)
    with pytest.raises(StorageError, match=r"collection\.json cannot be read"):
        Output(path, "resume")
    manifest_path(path).write_bytes(b'{"version": 9, "news": 1}')
    with pytest.raises(StorageError, match="has version 9; this release supports version 1"):
        read_manifest(path)


@both_formats
def test_damage_that_is_not_at_the_end_is_named_and_left_as_it_is(ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    collect(path, "new", n=3)
    first = path if ending == "jsonl" else min(path.glob("part-*"))
    content = first.read_bytes()
    first.write_bytes(content[:50] + b"\n" + content[51:] if ending == "jsonl" else content[:-20])
    with pytest.raises(StorageError, match=r"line 1 is not JSON|part-00000\.parquet is damaged"):
        Output(path, "resume")
    assert first.stat().st_size in (len(content), len(content) - 20)


@pytest.mark.parametrize(
    ("asked", "message"), [({"endless": True}, "endless is True"), ({"n": 4, "keep": "reader"}, "keep is")]
)
def test_a_collection_of_which_nobody_could_say_what_a_file_lacks_is_refused(asked, message, tmp_path):
    with pytest.raises(StorageError, match=message):
        Output(tmp_path / "a.jsonl").ask(CONFIG, CONFIG, **asked)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_of_trajectories_is_refused_before_anything_else(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(StorageError, match="is a directory"):
        Output(tmp_path / "x.jsonl", "resume")
    (tmp_path / "x.parquet").touch()
    with pytest.raises(StorageError, match="single Parquet file"):
        Output(tmp_path / "x.parquet", "append")
    with pytest.raises(StorageError, match="mode is 'replace'"):
        Output(tmp_path / "y.jsonl", "replace")
    with pytest.raises(StorageError, match="append and overwrite exclude each other"):
        storage.TrajectoryWriter(tmp_path / "y.jsonl", append=True, overwrite=True)
