"""Parts: what is written is read back, or refused; a failure leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from rollout_service.errors import StorageError
from rollout_service.record.part import Part, discard_files, encoded, is_there, read_part
from rollout_service.record.part_files import PARTS_OF_A_FILE, PartFiles
from tests.support.trajectories import make_segment, make_trajectory, trajectories


@given(trajectory=trajectories())
def test_a_part_is_read_back_equal(trajectory, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    trajectory.trajectory_id = "t"
    part = PartFiles(folder, "node").write(trajectory)
    found = read_part(folder, part)
    assert found.to_dict() == trajectory.to_dict()
    assert [segment.logprobs.dtype for segment in found.segments] == [s.logprobs.dtype for s in trajectory.segments]
    discard_files(folder, [part])


def test_a_long_prompt_is_stored_as_its_token_ids_and_little_else(tmp_path):
    segment = make_segment()
    prompt, blank = np.arange(10_000, dtype=np.int32), np.zeros(10_000)
    long = replace(
        segment,
        token_ids=np.concatenate([prompt, segment.token_ids]),
        loss_mask=np.concatenate([blank, segment.loss_mask]).astype(np.uint8),
        logprobs=np.concatenate([blank, segment.logprobs]).astype(np.float32),
        weight_versions=np.concatenate([blank - 1, segment.weight_versions]).astype(np.int32),
    )
    sizes = []
    for segments in ([segment], [long]):
        trajectory = make_trajectory(segments=segments)
        part = PartFiles(tmp_path, "node").write(trajectory)
        assert read_part(tmp_path, part).to_dict() == trajectory.to_dict()
        sizes.append((tmp_path / part.name).stat().st_size)
    assert sizes[1] - sizes[0] < len(prompt) * 4.2


def test_arrays_that_say_more_than_they_should_are_stored_as_they_are(tmp_path):
    segment = make_segment()
    context = int(np.flatnonzero(segment.loss_mask == 0)[0])
    for name, value in (("logprobs", -0.25), ("logprobs", np.nan), ("weight_versions", 3), ("loss_mask", 2)):
        odd = getattr(segment, name).copy()
        odd[context] = value
        trajectory = make_trajectory(segments=[replace(segment, **{name: odd})])
        (found,) = read_part(tmp_path, PartFiles(tmp_path, "node").write(trajectory)).segments
        np.testing.assert_array_equal(getattr(found, name), odd)


def test_a_part_that_was_changed_or_removed_is_refused(tmp_path):
    part = PartFiles(tmp_path, "node").write(make_trajectory(segments=[make_segment(), make_segment(3)]))
    path = tmp_path / part.name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError, match="is damaged"):
        read_part(tmp_path, part)
    discard_files(tmp_path, [part, replace(part, name="another")])
    with pytest.raises(StorageError, match="cannot be read"):
        read_part(tmp_path, part)


def test_a_part_of_a_release_that_gave_each_one_a_file_is_read(tmp_path):
    trajectory = make_trajectory()
    content = encoded(trajectory)
    (tmp_path / "t.part").write_bytes(content)
    part = Part("t.part", hashlib.sha256(content).hexdigest(), "node")
    assert read_part(tmp_path, part).to_dict() == trajectory.to_dict()
    assert is_there(tmp_path, part)


def full(*anything: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_file_that_holds_no_part(tmp_path, monkeypatch):
    files = PartFiles(tmp_path, "node")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space left"):
            files.write(make_trajectory())
    assert list(tmp_path.iterdir()) == []
    assert is_there(tmp_path, files.write(make_trajectory()))


def test_after_an_error_the_parts_that_a_file_has_are_kept_and_another_file_is_begun(tmp_path, monkeypatch):
    files = PartFiles(tmp_path, "node")
    first = files.write(make_trajectory(trajectory_id="first"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space left"):
            files.write(make_trajectory(trajectory_id="torn"))
    second = files.write(make_trajectory(trajectory_id="second"))
    assert second.name != first.name
    assert [read_part(tmp_path, part).trajectory_id for part in (first, second)] == ["first", "second"]


def test_a_file_that_somebody_removed_is_not_added_to(tmp_path):
    files = PartFiles(tmp_path, "node")
    discard_files(tmp_path, [files.write(make_trajectory())])
    assert is_there(tmp_path, files.write(make_trajectory()))


def test_a_file_that_was_cut_is_missed_before_its_part_is_read(tmp_path):
    files = PartFiles(tmp_path, "node")
    parts = [files.write(make_trajectory()) for _ in range(2)]
    assert len({part.name for part in parts}) == 1
    os.truncate(tmp_path / parts[0].name, parts[1].offset + parts[1].size - 1)
    assert [is_there(tmp_path, part) for part in parts] == [True, False]
    with pytest.raises(StorageError, match="is damaged"):
        read_part(tmp_path, parts[1])


def test_threads_that_write_at_the_same_time_share_syncs_and_each_gets_its_own_part(tmp_path, monkeypatch):
    files, syncs, sync = PartFiles(tmp_path, "node"), [], os.fdatasync
    everybody = threading.Event()

    def slow(file: int) -> None:  # the first one waits until all the others wait for it
        syncs.append(file)
        everybody.wait(60)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    names = [f"t-{number}" for number in range(PARTS_OF_A_FILE + 3)]
    with ThreadPoolExecutor(len(names)) as threads:
        futures = [threads.submit(files.write, make_trajectory(trajectory_id=name)) for name in names]
        while len(files._waiting) < len(names) - 1:
            time.sleep(0.01)
        everybody.set()
        parts = [future.result() for future in futures]
    assert [read_part(tmp_path, part).trajectory_id for part in parts] == names
    assert len(syncs) == 3, "one alone, those that waited and had room, and the rest in another file"
    assert sorted(Counter(part.name for part in parts).values()) == [3, PARTS_OF_A_FILE]
