"""Parts: what is written is read back, or refused; a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from rollout_service.errors import StorageError
from rollout_service.record.part import discard_parts, read_part, write_part
from tests.support.trajectories import make_segment, make_trajectory, trajectories


@given(trajectory=trajectories())
def test_a_part_is_read_back_equal(trajectory, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    trajectory.trajectory_id = "t"
    part = write_part(folder, trajectory, "node")
    found = read_part(folder, part)
    assert found.to_dict() == trajectory.to_dict()
    assert [segment.logprobs.dtype for segment in found.segments] == [s.logprobs.dtype for s in trajectory.segments]
    discard_parts(folder, [part])


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
        part = write_part(tmp_path, trajectory, "node")
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
        (found,) = read_part(tmp_path, write_part(tmp_path, trajectory, "node")).segments
        np.testing.assert_array_equal(getattr(found, name), odd)


def test_a_part_that_was_changed_or_removed_is_refused(tmp_path):
    part = write_part(tmp_path, make_trajectory(segments=[make_segment(), make_segment(3)]), "node")
    path = tmp_path / part.name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError, match="is damaged"):
        read_part(tmp_path, part)
    discard_parts(tmp_path, [part, replace(part, name="another")])
    with pytest.raises(StorageError, match="cannot be read"):
        read_part(tmp_path, part)


def test_a_full_disk_leaves_no_part_and_no_unfinished_file(tmp_path, monkeypatch):
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_part(tmp_path, make_trajectory(), "node")
    assert list(tmp_path.iterdir()) == []
