"""A service whose coordinator is killed: the real restart, with a stream that stays open."""

from __future__ import annotations

import os
import signal

import ray

from tests.support.services import start


def test_streams_survive_the_kill_of_their_coordinator_and_give_each_trajectory_once(cluster, tmp_path):
    folder = tmp_path / "journal"
    with start("journaled", service__slots=4, service__journal=str(folder)) as client:
        stream = client.stream(24, group_size=2)
        groups = [next(stream) for _ in range(3)]
        coordinator = ray.get(client._coordinator.__ray_call__.remote(lambda self: os.getpid()))
        os.kill(coordinator, signal.SIGSTOP)
        asked = client.astream(2)  # the call is under way when the coordinator dies
        os.kill(coordinator, signal.SIGKILL)
        groups += list(stream)
        names = [trajectory.trajectory_id for group in groups for trajectory in group]
        assert len(names) == len(set(names)) == 24
        assert all(trajectory.reward is not None for group in groups for trajectory in group)
        assert client.status()["journal"] == {"path": str(folder), "problem": None}
        assert [len(group) for group in asked] == [1, 1], "the call was made again"
        assert client.status()["collections"] == {}, "it began one collection"
    assert list((folder / "parts").iterdir()) == []
