"""Parts: what is written is read back, or refused; a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

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
