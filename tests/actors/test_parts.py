"""Parts between actors: an environment actor writes them however long the disk is full, and who can read them."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

import actors.bookkeeping as bookkeeping
import actors.parts as parts
from actors.parts import PartWriter
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.errors import Fault, FaultKind
from rollout_service.journal.entries import Stored
from rollout_service.journal.place import PARTS
from rollout_service.record.part import Part, read_part
from rollout_service.record.part_files import PartFiles
from rollout_service.record.trajectory import Outcome
from tests.support.trajectories import make_trajectory


@pytest.fixture
def writer(tmp_path, monkeypatch) -> PartWriter:
    monkeypatch.setattr(parts, "_node", lambda: "node")
    monkeypatch.setattr(parts, "_FIRST_PAUSE", 0.001)
    return PartWriter(str(tmp_path))


async def test_a_trajectory_that_a_full_disk_refuses_is_written_later(writer, tmp_path, monkeypatch, caplog):
    sync, left = os.fdatasync, iter(range(3))

    def full(file: int) -> None:
        if next(left, None) is None:
            return sync(file)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    trajectory = make_trajectory()
    assert writer.write_here(trajectory) is None
    part = await writer.write(trajectory)
    assert read_part(tmp_path / PARTS, part).to_dict() == trajectory.to_dict()
    assert "make room or repair the disk" in caplog.text


async def test_what_a_fault_ended_is_not_written(writer, tmp_path):
    fault = Fault(FaultKind.SERVICE, "OSError", "it broke", retryable=True)
    trajectory = make_trajectory(outcome=Outcome.ABORTED, reward=None, fault=fault)
    assert (writer.write_here(trajectory), await writer.write(trajectory)) == (None, None)
    assert not (tmp_path / PARTS).exists()


async def test_after_another_coordinator_came_parts_go_into_another_file(writer):
    first = writer.write_here(make_trajectory())
    writer.begin_another_file()
    assert writer.write_here(make_trajectory()).name != first.name


def test_a_part_of_a_node_that_is_gone_is_read_where_the_folder_is_shared(tmp_path, monkeypatch):
    living = SimpleNamespace(
        is_initialized=lambda: True,
        nodes=lambda: [{"NodeID": "here", "Alive": True}, {"NodeID": "there", "Alive": True}],
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "here"),
    )
    monkeypatch.setattr(bookkeeping, "ray", living)
    (tmp_path / PARTS).mkdir()
    shared = PartFiles(tmp_path / PARTS, "gone").write(make_trajectory())
    found = [shared, *(Part("missing", "", node) for node in ("here", "gone", "there"))]
    summaries = [EpisodeSummary("t", Outcome.COMPLETED, "user_stop", 1.0, None, part=part) for part in found]
    stored = {number: Stored("c", number, 1, summary) for number, summary in enumerate(summaries)}
    assert list(bookkeeping._readable(stored, tmp_path)) == [0, 3]
