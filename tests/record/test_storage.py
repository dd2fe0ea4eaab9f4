"""Stored trajectories come back as they were, and what was stored survives what happens to the next one."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.errors import Fault, FaultKind, StorageError
from rollout_service.record import parquet, storage
from rollout_service.record.trajectory import Outcome, Provenance, TaskRef, Trajectory
from tests.support.trajectories import as_text, make_segment, make_trajectory, trajectories, unlike_any_default

ROOT = Path(__file__).parents[2]

both_formats = pytest.mark.parametrize("ending", ["jsonl", "parquet"])


def some(count: int, start: int = 0) -> list[Trajectory]:
    return [make_trajectory(trajectory_id=f"t{n}") for n in range(start, start + count)]


def ids(found: list[Trajectory]) -> list[str]:
    return [trajectory.trajectory_id for trajectory in found]


@given(written=st.lists(trajectories(), max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_every_trajectory_comes_back_exactly_in_both_formats(written: list[Trajectory]) -> None:
    """The same ones in both: to draw them takes longer than to store them."""
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("jsonl", "parquet"):
            path = Path(folder, f"x.{ending}")
            storage.write(path, written)
            assert [as_text(t) for t in storage.read(path)] == [as_text(t) for t in written]


@both_formats
def test_no_field_of_any_part_of_a_trajectory_is_lost(ending: str, tmp_path: Path) -> None:
    written = unlike_any_default(Trajectory)
    storage.write(tmp_path / f"x.{ending}", [written])
    (back,) = storage.read(tmp_path / f"x.{ending}")
    assert back.provenance.evaluator == written.provenance.evaluator
    assert back.to_dict() == written.to_dict()


@both_formats
def test_files_of_the_release_before_are_read(ending: str) -> None:
    """Written by the code of 2026-11-24: Parquet had no `provenance.evaluator` then, and counted in 32 bits."""
    scored, lost = storage.read(ROOT / "tests" / "data" / f"version_2.{ending}")
    evaluator = {"jsonl": "fast", "parquet": ""}[ending]
    provenance = Provenance("scripted", "embedded", sampling={"temperature": 1.0}, evaluator=evaluator)
    assert as_text(scored) == as_text(make_trajectory(provenance=replace(provenance, tau2_version="26.3")))
    fault = Fault(FaultKind.SERVICE, "RayActorError", "the actor died", True)
    assert (lost.outcome, lost.fault, lost.reward, lost.segments) == (Outcome.ABORTED, fault, None, [])


def holds(new: object, old: object) -> bool:
    """Whether every value of an old record is in the new one; the new one may have more fields."""
    if isinstance(new, dict) and isinstance(old, dict):
        return all(name in new and holds(new[name], value) for name, value in old.items())
    if isinstance(new, list) and isinstance(old, list):
        return len(new) == len(old) and all(map(holds, new, old))
    return new == old


@both_formats
def test_every_value_in_a_file_of_release_0_1_is_read(ending: str) -> None:
    """The second trajectory has a value in every field that its release had."""
    written = [json.loads(line) for line in (ROOT / "tests/data/release_0.1.jsonl").read_text().splitlines()]
    read = [trajectory.to_dict() for trajectory in storage.read(ROOT / f"tests/data/release_0.1.{ending}")]
    assert len(read) == 2
    assert all(map(holds, read, written))
    assert read[1]["fault"] == written[1]["fault"] | {"traceback": None}


def test_a_directory_that_two_releases_wrote_is_one_dataset(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.mkdir()
    (path / "part-00000.parquet").write_bytes((ROOT / "tests" / "data" / "version_2.parquet").read_bytes())
    storage.write(path, [make_trajectory(provenance=Provenance(evaluator="official"))], append=True)
    assert [t.provenance.evaluator for t in storage.read(path)] == ["", "", "official"]
    table = pq.read_table(path, schema=parquet.SCHEMA)
    assert [p["evaluator"] for p in table["provenance"].to_pylist()] == [None, None, "official"]


@both_formats
def test_awkward_values_come_back_exactly(ending: str, tmp_path: Path) -> None:
    segment = make_segment()
    edge = np.array([-0.0, 1e-45, -3.4028235e38, np.nextafter(np.float32(-1), np.float32(0))], dtype=np.float32)
    segment.logprobs[3:7] = edge
    content = "line\u2028separator, \x00, naïve 🚆, lone \udc00 surrogate \ud83d"
    written = make_trajectory(reward=None, segments=[segment], messages=[{"content": content}])
    storage.write(tmp_path / f"x.{ending}", [written, make_trajectory(reward=0.0, segments=[])])
    first, second = storage.read(tmp_path / f"x.{ending}")
    assert first.segments[0].logprobs.tobytes() == segment.logprobs.tobytes()
    assert first.messages == [{"content": content}]
    assert (first.reward, second.reward, second.segments) == (None, 0.0, [])


@both_formats
def test_arrays_come_back_typed_writable_and_independent(ending: str, tmp_path: Path) -> None:
    storage.write(tmp_path / f"x.{ending}", some(2))
    first, second = storage.read(tmp_path / f"x.{ending}")
    (segment,) = first.segments
    arrays = (segment.token_ids, segment.loss_mask, segment.logprobs, segment.weight_versions)
    assert [a.dtype for a in arrays] == [np.int32, np.uint8, np.float32, np.int32]
    segment.token_ids[:] = -5
    assert as_text(second) == as_text(make_trajectory(trajectory_id="t1"))


def test_text_without_surrogates_stays_readable(tmp_path: Path) -> None:
    message = [{"content": "größer"}]
    storage.write(tmp_path / "x.jsonl", [make_trajectory(messages=message)])
    storage.write(tmp_path / "x.parquet", [make_trajectory(messages=message)])
    assert "größer" in (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    assert "größer" in pq.read_table(tmp_path / "x.parquet")["messages"][0].as_py()


def test_parquet_is_a_dataset_of_documented_columns(tmp_path: Path) -> None:
    with storage.TrajectoryWriter(tmp_path / "x.parquet") as writer:
        writer.append(some(2))
        writer.append([])
        writer.append(some(1, start=2))
    assert sorted(os.listdir(tmp_path / "x.parquet")) == ["part-00000.parquet", "part-00001.parquet"]
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.equals(parquet.SCHEMA)
    assert table["task_domain"].to_pylist() == ["retail"] * 3
    assert table["segments"][0].as_py()[0]["token_ids"] == make_segment().token_ids.tolist()
    assert table["fault"].null_count == 3
    assert ids(storage.read(tmp_path / "x.parquet" / "part-00001.parquet")) == ["t2"]


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write(path, some(1))
    (path / "part-00000.parquet").rename(path / "part-99999.parquet")
    storage.write(path, some(1, start=1), append=True)
    assert ids(storage.read(path)) == ["t0", "t1"]


def test_a_long_stream_is_written_in_several_parts(tmp_path: Path) -> None:
    storage.write(tmp_path / "x.parquet", (make_trajectory(trajectory_id=f"t{n}", segments=[]) for n in range(513)))
    assert len(list((tmp_path / "x.parquet").iterdir())) == 2
    assert ids(storage.read(tmp_path / "x.parquet")) == [f"t{n}" for n in range(513)]


@both_formats
def test_nothing_written_reads_as_nothing(ending: str, tmp_path: Path) -> None:
    storage.write(tmp_path / "new" / f"x.{ending}", [])
    assert storage.read(tmp_path / "new" / f"x.{ending}") == []


@both_formats
def test_an_existing_path_is_refused_unless_appended_to(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    storage.write(path, some(2))
    with pytest.raises(StorageError, match="exists already"):
        storage.write(path, some(1))
    with storage.TrajectoryWriter(path, append=True) as writer:
        assert writer.count == 2
        writer.append(some(1, start=2))
        assert writer.count == 3
    assert ids(storage.read(path)) == ["t0", "t1", "t2"]


def test_unusable_paths_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"'\.csv'.*\.jsonl or \.parquet"):
        storage.write(tmp_path / "x.csv", [])
    with pytest.raises(StorageError, match="does not exist"):
        storage.iterate(tmp_path / "x.jsonl")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be opened"):
        storage.write(tmp_path / "file" / "x.jsonl", [])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        storage.read(tmp_path / "folder.jsonl")


def test_a_single_parquet_file_does_not_grow(tmp_path: Path) -> None:
    storage.write(tmp_path / "x.parquet", some(1))
    part = tmp_path / "x.parquet" / "part-00000.parquet"
    with pytest.raises(StorageError, match="directory"):
        storage.write(part, some(1), append=True)


def test_an_unfinished_line_is_named_after_what_precedes_it_and_cut_off_by_append(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    storage.write(path, some(3))
    os.truncate(path, path.stat().st_size - 10)
    stream = storage.iterate(path)
    assert ids([next(stream), next(stream)]) == ["t0", "t1"]
    with pytest.raises(StorageError, match=r"line 3 is unfinished.*append=True"):
        next(stream)
    storage.write(path, some(1, start=7), append=True)
    assert ids(storage.read(path)) == ["t0", "t1", "t7"]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    storage.write(path, some(2))
    os.truncate(path, path.stat().st_size - 1)
    assert ids(storage.read(path)) == ["t0", "t1"]
    with storage.TrajectoryWriter(path, append=True) as writer:
        assert writer.count == 2
        writer.append(some(1, start=2))
    assert ids(storage.read(path)) == ["t0", "t1", "t2"]


@pytest.mark.parametrize("content", ["my notes", '{"question": 1}', '{"question": 1}\n', '{"schema_version":99}'])
def test_append_leaves_a_file_of_someone_else_as_it_is(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(StorageError, match=r"not a trajectory|schema version"):
        storage.write(path, some(1), append=True)
    assert path.read_text() == content


def test_a_line_that_broke_off_at_its_start_is_cut_off_too(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"sche')
    storage.write(path, some(1), append=True)
    assert ids(storage.read(path)) == ["t0"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    storage.write(path, some(3))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{oops}\n" + lines[2])
    with pytest.raises(StorageError, match="line 2 is not JSON"):
        storage.read(path)
    record = json.loads(lines[1])
    del record["outcome"]
    path.write_bytes(lines[0] + json.dumps(record).encode() + b"\n")
    with pytest.raises(StorageError, match=r"line 2 is not a trajectory.*outcome"):
        storage.read(path)


@pytest.mark.parametrize("damage", ["cut", "page"])
def test_a_damaged_part_is_named_after_what_precedes_it(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write(path, some(2))
    storage.write(path, some(2, start=2), append=True)
    part = path / "part-00001.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-20] if damage == "cut" else content[:4] + b"\xff" * 400 + content[404:])
    stream = storage.iterate(path)
    assert ids([next(stream), next(stream)]) == ["t0", "t1"]
    with pytest.raises(StorageError, match=r"part-00001\.parquet is damaged"):
        next(stream)


def with_schema_version(path: Path, version: int | None) -> None:
    """Rewrite the only trajectory at `path` as a release with another schema would have."""
    if path.is_file():
        record = json.loads(path.read_text()) | {"schema_version": version, "novelty": 1}
        path.write_text(json.dumps(record) + "\n")
    else:
        (part,) = path.iterdir()
        metadata = {} if version is None else {parquet.VERSION_KEY: str(version)}
        table = pq.read_table(part).append_column("novelty", pa.array([1])).replace_schema_metadata(metadata)
        pq.write_table(table, part)


@both_formats
def test_another_schema_version_is_refused_with_both_versions_named(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    storage.write(path, some(1))
    with_schema_version(path, 99)
    before = sorted((p, p.stat().st_size) for p in tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=r"schema version 99.*supports version 2.*release"):
        storage.read(path)
    with pytest.raises(StorageError, match="schema version 99"):
        storage.write(path, some(1), append=True)
    assert sorted((p, p.stat().st_size) for p in tmp_path.rglob("*")) == before


@both_formats
def test_a_file_of_someone_else_is_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    storage.write(path, some(1))
    with_schema_version(path, None)
    with pytest.raises(StorageError, match="no schema version"):
        storage.read(path)


@both_formats
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_logprob_that_is_not_a_number_is_refused_by_name(ending: str, value: float, tmp_path: Path) -> None:
    segment = make_segment()
    segment.logprobs[4] = value
    with storage.TrajectoryWriter(tmp_path / f"x.{ending}") as writer:
        writer.append(some(1))
        with pytest.raises(StorageError, match="'bad' cannot be stored: log-prob of segment 0 at 4 is"):
            writer.append([make_trajectory(trajectory_id="bad", segments=[segment])])
        writer.append(some(1, start=1))
    assert ids(storage.read(tmp_path / f"x.{ending}")) == ["t0", "t1"]


@pytest.mark.parametrize(
    ("ending", "overrides"),
    [
        ("jsonl", {"messages": [{"content": {1, 2}}]}),
        ("parquet", {"messages": [{"content": {1, 2}}]}),
        ("jsonl", {"attempt": 1.5}),
        ("parquet", {"timing": None}),
        ("parquet", {"seed": 2**63}),
        ("parquet", {"task": TaskRef("retail", "train", "\ud800", 0)}),
    ],
)
def test_an_unstorable_trajectory_is_named_and_spoils_nothing(
    ending: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / f"x.{ending}"
    with storage.TrajectoryWriter(path) as writer:
        writer.append(some(2))
        with pytest.raises(StorageError, match="'bad' cannot be stored"):
            writer.append([make_trajectory(trajectory_id="bad", **overrides), *some(1, start=2)])
        assert writer.count == 2
        writer.append(some(1, start=3))
    assert ids(storage.read(path)) == ["t0", "t1", "t3"]
    assert [p.name for p in tmp_path.rglob("*unfinished*")] == []


DISK_FILLS_UP = """
import resource, signal, sys
from rollout_service.record import storage
from rollout_service.errors import StorageError
from tests.support.trajectories import make_segment, make_trajectory

path = sys.argv[1]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as on a full disk, and the process lives
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
batches = [[make_trajectory(trajectory_id=f"{n}-{i}", segments=[make_segment(1, 2_000, seed=n + i)]) for i in range(n)]
           for n in range(1, 40, 3)]
with storage.TrajectoryWriter(path) as writer:
    for n, batch in enumerate(batches):
        try:
            writer.append(batch)
        except StorageError as error:
            print(n, writer.count, error)
            break
    print(len(storage.read(path)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    safe = {t.trajectory_id for t in storage.read(path)}
    writer.append([t for t in batches[n] if t.trajectory_id not in safe])
    print(writer.count, len(storage.read(path)), sum(map(len, batches[: n + 1])))
"""


def start(script: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@both_formats
def test_a_full_disk_loses_nothing_that_was_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    output, trouble = start(DISK_FILLS_UP, path).communicate(timeout=60)
    failure, safe, after = (output + trouble).splitlines()
    number, count, message = failure.split(" ", 2)
    assert int(number) > 0
    assert int(count) > 0
    assert safe == count
    assert str(path) in message
    assert f"The {count} trajectories that it holds are safe" in message
    assert "File too large" in message
    assert len(set(after.split())) == 1  # the same writer went on, and nothing is missing
    assert list(tmp_path.rglob("*unfinished*")) == []


@both_formats
def test_an_old_file_stays_alone_if_the_first_new_group_cannot_be_stored(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    storage.write(path, some(2))
    with storage.TrajectoryWriter(path, overwrite=True) as writer:
        with pytest.raises(StorageError, match="cannot be stored"):
            writer.append([make_trajectory(trajectory_id="new"), make_trajectory(reward=float("nan"))])
        assert writer.count == 0
    assert ids(storage.read(path)) == ["t0", "t1"]
    assert os.listdir(tmp_path) == [path.name]


WRITES_UNTIL_KILLED = """
import sys
from rollout_service.record import storage
from tests.support.trajectories import make_segment, make_trajectory

segment = make_segment(1, 10)
with storage.TrajectoryWriter(sys.argv[1]) as writer:
    for n in range(10_000):
        writer.append([make_trajectory(trajectory_id=f"t{n}", segments=[segment])])
        print(writer.count, flush=True)
"""


@both_formats
def test_a_killed_writer_leaves_what_it_reported_and_can_be_followed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    process = start(WRITES_UNTIL_KILLED, path)
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    reported = [int(line) for line in process.communicate()[0].split()]
    with storage.TrajectoryWriter(path, append=True) as writer:
        count = writer.count
        assert count >= max([5, *reported])
        writer.append([make_trajectory(trajectory_id="after")])
    assert ids(storage.read(path)) == [f"t{n}" for n in range(count)] + ["after"]
