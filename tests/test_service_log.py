"""What the log of a running service says when something goes wrong: real processes, their real log files.

The lines are those of docs/operations.md.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import ray

from deploy import policy as application
from rollout_service import RolloutClient
from rollout_service.collecting import stream as streams
from tests.support.services import FailingReplica, start

TIMEOUT_SECONDS = 120.0


@pytest.fixture(scope="module")
def service(cluster: None) -> Iterator[RolloutClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "PolicyReplica", FailingReplica)
        settings = {
            "service__slots": 2,
            "service__max_buffered_groups": 1,
            "policy__script": {"latency": {"mean": 0.1}},
        }
        with start("logs", **settings) as client:
            yield client


def log() -> str:
    """All that the processes of this process's cluster have logged so far."""
    folder = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("worker-*.err")))


def logged(pattern: str) -> str:
    """The text in the log that matches, waiting until it is there."""
    give_up = time.monotonic() + TIMEOUT_SECONDS
    while (found := re.search(pattern, log(), re.DOTALL)) is None:
        assert time.monotonic() < give_up, f"the log never says {pattern!r}"
        time.sleep(0.1)
    return found.group()


def test_a_fault_deep_in_a_policy_is_logged_with_its_stack_and_its_retry_and_the_episode_is_played_again(service):
    logged(r"INFO actors\.status: Service logs is up after .* s; policy: scripted, replicas: 1, ")
    (trajectory,) = service.collect(1, progress=False)
    assert (trajectory.attempt, trajectory.reward) == (2, 1.0)
    name = re.escape(trajectory.trajectory_id)
    stack = logged(
        rf"WARNING actors\.collection_log: Episode {name}, attempt 1: fault of kind policy \(another attempt may help\)"
        r": RuntimeError: the device is too hot\nTraceback .*?process that raised it:.*?\nRuntimeError: the device is "
    )
    assert "scripted.py" in stack, "the frames of the replica's process"
    assert "in overheated" in stack
    assert "\x1b" not in stack
    again = rf"Episode {name} is tried again \(attempt 2 of 3\): policy: the device is too hot"
    logged(rf"INFO actors\.collection_log: {again}")
    logged(rf"INFO actors\.coordinator: Collection {trajectory.collection_id} ended after .* 1 of 1 episodes done")


def test_an_environment_actor_that_is_lost_is_logged_with_what_becomes_of_its_episodes(service):
    with closing(service.stream(2, group_size=1)) as stream:
        stream.open()
        while not service.status()["running"]:
            time.sleep(0.05)
        ray.kill(ray.get_actor("logs-environment-0", namespace=service.config.service.namespace))
        trajectories = [trajectory for group in stream for trajectory in group]
    assert [trajectory.reward for trajectory in trajectories] == [1.0, 1.0]
    logged(r"WARNING actors\.pool: Environment actor logs-environment-0 was lost: .*?\. Another one is started\.")
    lost = r"Episode \S+, attempt 1: fault of kind service \(another attempt may help\)"
    logged(rf"WARNING actors\.collection_log: {lost}")
    again = r"Episode \S+ is played again: its environment actor was lost, which does not count"
    logged(rf"INFO actors\.collection_log: {again}")
    assert service.status()["lost_actors"] == 1


def test_a_stream_that_stands_still_says_why_on_both_sides(service, monkeypatch, caplog):
    with closing(service.stream(4, group_size=1)) as stream:
        next(stream)
        logged(rf"INFO actors\.collection_log: Collection {stream.collection_id} is held back: .*")
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 0.2)
    service.pause("drain")
    logged(r"INFO deploy\.replica: Paused \(drain\): no turn is sampled until resume\.")
    logged(r"INFO actors\.fleet: Paused \(drain\) until resume; replicas: 1\.")
    with closing(service.stream(1)) as stream:
        waiting = threading.Thread(target=next, args=(stream,))
        waiting.start()
        while "waiting for client.resume(): the policy is paused" not in caplog.text:
            time.sleep(0.05)
        service.resume()
        waiting.join(TIMEOUT_SECONDS)
    logged(r"INFO actors\.fleet: Resumed; replicas: 1\.")
