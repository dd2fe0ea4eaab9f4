"""The trainer's end of a process group: what becomes of the other ranks when it cannot be formed."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace

import pytest

from rollout_service.errors import WeightError
from rollout_service.policy import process_group, weight_group
from rollout_service.policy.nccl import NcclSettings
from rollout_service.policy.weight_group import WeightGroup
from rollout_service.policy.weights import GroupTerms


class Ranks:
    """A fleet of two ranks, as threads: the first one is gone when the others connect, the second one connects."""

    def __init__(self) -> None:
        self.gone, self.ended = threading.Event(), threading.Event()
        self.left: list[str] = []
        self.join_group = SimpleNamespace(remote=self._join)
        self.leave_group = SimpleNamespace(remote=self.left.append)

    def _join(self, rendezvous):
        for rank in self._first, self._second:
            threading.Thread(target=rank, args=(rendezvous,), daemon=True).start()

    def _first(self, rendezvous):
        process_group.leave(process_group.join(rendezvous, 1))
        self.gone.set()

    def _second(self, rendezvous):
        group = process_group.join(rendezvous, 2)
        self.gone.wait(60)
        with pytest.raises(RuntimeError):
            process_group.connect(group, "cpu")
        self.ended.set()


class Watch:
    """Waits without a cluster."""

    def __init__(self, rendezvous, fleet, answer) -> None:
        self._gone = fleet.gone

    def until(self, own):
        try:
            joined = own.result(60)
        except RuntimeError as error:
            raise WeightError("The process group is closed.") from error
        self._gone.wait(60)
        return joined


def test_a_rank_that_connects_waits_no_longer_once_the_trainer_could_not(monkeypatch):
    monkeypatch.setattr(weight_group, "_Watch", Watch)
    ranks, terms = Ranks(), GroupTerms(3, (NcclSettings("host", {}), NcclSettings("host", {})))
    with pytest.raises(WeightError, match="is closed") as kept:
        WeightGroup.meet("127.0.0.1", "gloo", terms, ranks, timeout_seconds=600)
    assert len(ranks.left) == 1
    assert ranks.ended.wait(60), f"it waits for as long as somebody has the error {kept.value}"


def test_nobody_else_can_take_the_port_that_the_replicas_are_told():
    class Told(Exception): ...

    def join(rendezvous):
        told.append(rendezvous.port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", rendezvous.port))
        raise Told

    told: list[int] = []
    fleet = SimpleNamespace(join_group=SimpleNamespace(remote=join))
    with pytest.raises(Told):
        WeightGroup.meet("127.0.0.1", "gloo", GroupTerms(2, (NcclSettings("host", {}),)), fleet, timeout_seconds=600)
    with socket.socket() as other:
        other.bind(("", told[0]))  # it is free again, because there is no group
