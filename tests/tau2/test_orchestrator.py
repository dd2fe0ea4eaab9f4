"""Our orchestrator copies its messages as τ²'s own does."""

from __future__ import annotations

from rollout_service.tau2 import compat, domain, tasks
from rollout_service.tau2.orchestrator import Orchestrator
from tests.parity import play
from tests.support.episodes import task


def test_the_messages_are_the_copies_that_the_official_orchestrator_gives() -> None:
    chosen = tasks.get(task("mock"))
    ours = play(domain.get("mock").environment(), chosen, chosen)
    ours.__class__ = Orchestrator
    messages = ours.get_trajectory()
    assert messages == compat.Orchestrator.get_trajectory(ours)
    assert [message.turn_idx for message in messages] == list(range(len(ours.trajectory)))
    for live, copied in zip(ours.trajectory, messages, strict=True):
        assert copied is not live
        if calls := getattr(live, "tool_calls", None):
            assert copied.tool_calls[0].arguments is not calls[0].arguments
