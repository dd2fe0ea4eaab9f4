"""A service whose coordinator is killed: the real restart, with a stream that stays open."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import ray

import rollout_service.services as services
from rollout_service import RolloutClient
from rollout_service.cli.playing import play_with
from rollout_service.collecting.request import CollectionRequest
from rollout_service.collecting.stream import GroupStream
from rollout_service.output import Output
from rollout_service.record.storage import read
from tests.support.services import start, wait_until


def pid(actor: Any) -> int:
    found: int = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    return found


def environment_actors() -> dict[str, int]:
    """Process ids of the service's environment actors, by name."""
    names = services.find_actors("journaled", "rollout_service")
    found = {name: ray.get_actor(name, namespace="rollout_service") for name in names if "-environment-" in name}
    return {name: pid(actor) for name, actor in found.items()}


def begun_by_a_collect_that_dies(client: RolloutClient, path: Path) -> Path:
    """A file with one group of three, of which the service does not know that it has it. All are finished."""
    output = Output(path, "new")
    asked = output.ask(client.config, client.config, n=6, group_size=2, seed=3)
    request = CollectionRequest(n=6, group_size=2, seed=3)
    submit = functools.partial(client._coordinator.submit.remote, request, "a trainer that died", "its collection")
    stream = GroupStream(client._coordinator, submit)
    stream.open()
    with output.writing(stream, asked) as writer:
        writer.append(next(stream))
    stream._finished = True  # it ends without a word
    wait_until(lambda: client.status()["collections"][stream.collection_id]["done"] == 6)
    return path


def test_streams_survive_the_kill_of_their_coordinator_and_give_each_trajectory_once(cluster, tmp_path):
    folder = tmp_path / "journal"
    with start("journaled", service__slots=4, service__journal=str(folder), service__lease_seconds=5.0) as client:
        before = environment_actors()
        stream = client.stream(24, group_size=2)
        groups = [next(stream) for _ in range(3)]
        assert client.update_weights("/any/folder", version=7).version == 7
        fleet = ray.get(client._fleet.state.remote())
        os.kill(pid(client._fleet), signal.SIGKILL)
        assert client.weight_version() == 7, "the fleet is back, and the call was made again"
        assert ray.get(client._fleet.state.remote()) == fleet
        assert client.update_weights("/any/folder", version=8).version == 8
        coordinator = pid(client._coordinator)
        os.kill(coordinator, signal.SIGSTOP)
        asked = client.astream(2)  # the call is under way when the coordinator dies
        os.kill(coordinator, signal.SIGKILL)
        groups += list(stream)
        names = [trajectory.trajectory_id for group in groups for trajectory in group]
        assert len(names) == len(set(names)) == 24
        assert all(trajectory.reward is not None for group in groups for trajectory in group)
        assert environment_actors() == before, "they go on, so that no episode waits for the imports of new ones"
        status = client.status()
        assert status["journal"] == {"path": str(folder), "problem": None}
        assert status["weight_version"] == 8, "the coordinator has it from the fleet"
        assert [len(group) for group in asked] == [1, 1], "the call was made again"
        request = CollectionRequest(n=6, group_size=2)
        accepted = ray.get(client._coordinator.submit.remote(request, "a trainer that died", None))
        path = begun_by_a_collect_that_dies(client, tmp_path / "out.jsonl")
        left = client.reopen(accepted.collection_id)
        assert accepted.collection_id not in client.collections(), "somebody reads it now"
        assert [len(group) for group in left] == [2, 2, 2], "it waited for the trainer's lease to lapse"
        finished = client.status()["finished"]
        chosen = dict.fromkeys(("n", "group_size", "seed", "budget", "weight"))
        progress, limit = play_with(client, Output(path, "resume"), client.config, chosen)
        assert (progress.summary.episodes, limit) == (4, "")
        assert len({trajectory.trajectory_id for trajectory in read(path)}) == len(read(path)) == 6
        assert client.status()["finished"] == finished, "what was finished is not played again"
        assert client.status()["collections"] == {}, "nothing was begun twice"
        stream = client.stream(8, group_size=2)
        groups = [next(stream)]
        for process in [pid(client._coordinator), pid(client._fleet)]:
            os.kill(process, signal.SIGKILL)
        groups += list(stream)
        assert len({trajectory.trajectory_id for group in groups for trajectory in group}) == 8
        assert [len(group) for group in groups] == [2, 2, 2, 2]
        assert client.weight_version() == 8, "fleet and coordinator have it from the replicas"
    assert list((folder / "parts").iterdir()) == []
    assert services.find_actors("journaled", "rollout_service") == [], "nothing outlives the service"
