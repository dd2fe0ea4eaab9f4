"""A scheduler of SGLang has connected to the trainer when it says that it joined, or says why not.

The class that joins is a stand-in here, and the groups are real. `test_sglang_serving.py` has SGLang itself.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
import torch

from deploy.engines import connecting
from rollout_service.policy import process_group
from rollout_service.policy.weights import Rendezvous


@dataclass(frozen=True)
class Updater:
    device: str = "cpu"
    _model_update_group: dict = field(default_factory=dict)

    def init_weights_update_group(self, meeting):
        if meeting is None:
            return False, "nobody came"
        self._model_update_group[meeting.name] = process_group.join(meeting, 1)
        return True, "joined"

    def destroy_weights_update_group(self, name):
        process_group.abort(self._model_update_group.pop(name))


@pytest.fixture
def updater(monkeypatch):
    """Connects when it joins."""
    fresh = type("Updater", (Updater,), {})
    monkeypatch.setattr(connecting, "_updater", lambda: fresh)
    connecting.connect_when_joining()
    return fresh()


@pytest.fixture
def listening():
    with process_group.listen() as socket:
        yield socket


@pytest.fixture
def meeting(listening):
    return Rendezvous("weights", "127.0.0.1", listening.getsockname()[1], "gloo", 2, timeout_seconds=20)


def test_the_first_weights_come_after_the_ranks_have_connected(updater, meeting, listening):
    sent = torch.arange(3.0)

    def trainer():
        group = process_group.join(meeting, 0, listening)
        process_group.connect(group, "cpu")
        process_group.broadcast(group, sent)
        process_group.leave(group)

    thread = threading.Thread(target=trainer, daemon=True)
    thread.start()
    assert updater.init_weights_update_group(meeting) == (True, "joined")
    received = torch.zeros(3)
    process_group.broadcast(updater._model_update_group["weights"], received)
    assert torch.equal(received, sent)
    thread.join(20)


def test_a_trainer_that_is_gone_before_it_connects_is_said_and_the_group_is_left(updater, meeting, listening):
    def trainer():
        process_group.leave(process_group.join(meeting, 0, listening))

    threading.Thread(target=trainer, daemon=True).start()
    success, message = updater.init_weights_update_group(meeting)
    assert not success
    assert "did not connect" in message
    assert updater._model_update_group == {}


def test_a_group_that_was_not_joined_is_not_connected(updater):
    assert updater.init_weights_update_group(None) == (False, "nobody came")
