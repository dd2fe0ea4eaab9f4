"""Episodes for a page in a browser, and what a reader does there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import Fault, FaultKind
from rollout_service.record.trajectory import Outcome, Provenance, TaskRef, Trajectory, UserReview
from rollout_service.record.turn_facts import TurnFacts
from tests.support.browser import Browser
from tests.support.trajectories import make_member, make_segment

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
HIDDEN = "\x00 \x1b[31m \u202e \ud800 \udfff"
"""A null, an escape, a mark that turns the direction, and two halves of surrogate pairs."""

SHALOM = "\u05e9\u05dc\u05d5\u05dd"


def stored() -> list[Trajectory]:
    """Three groups of two: a mixed one of retail, one of airline with a fault, and one with hostile text."""
    retail = [make_member(0, sample, reward=float(sample), messages=conversation()) for sample in range(2)]
    task = TaskRef("airline", "test", "7", 0)
    fault = Fault(FaultKind.USER_SIMULATOR, "RateLimitError", "too many requests", True)
    ended = {"outcome": Outcome.ABORTED, "termination_reason": "fault", "reward": None, "fault": fault}
    airline = [make_member(1, 0, task=task, messages=refused(), user_flaws={"transfer_ignored": [0]})]
    airline.append(make_member(1, 1, task=task, segments=[], **ended))
    words = [{"role": "user", "content": text} for text in (HOSTILE, HIDDEN, SHALOM)]
    odd = [make_member(2, sample, messages=words) for sample in range(2)]
    odd[0].trajectory_id = HOSTILE
    codec = ChatCodec.load()
    ids = np.array(codec.encode_written("One word and some more."), np.int32)
    for trajectory in retail:
        (segment,) = trajectory.segments
        segment.token_ids[:] = np.resize(ids, len(segment.token_ids))
        segment.turns[0].message_index = 1
        segment.turns[0].queue_seconds = 0.125
        segment.turns[0].facts = TurnFacts(1, 0, True, [], [0])
        trajectory.provenance = Provenance(tokenizer="embedded", tokenizer_fingerprint=codec.tokenizer_fingerprint)
    retail[1].messages.append({"role": "tool", "content": "hay\n" * 500 + "a needle"})
    retail[0].reward_info = checks()
    retail[0].user_review = UserReview("a model", {"errors": [error()], "summary": "A mistake."})
    retail[1].user_review = UserReview("a model", None, "it timed out")
    retail[1].segments.append(make_segment())  # versions begin again, which verify finds
    return retail + airline + odd


def conversation() -> list[dict[str, Any]]:
    call = {"id": "1", "name": "find_order", "arguments": {"order_id": 12345678901234567890}, "requestor": "assistant"}
    return [
        {"role": "user", "content": "Where is my zebra?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "id": "1", "content": '{"status": "on its way"}', "requestor": "assistant", "error": False},
    ]


def refused() -> list[dict[str, Any]]:
    call = {"id": "1", "name": "book", "arguments": {}, "requestor": "assistant"}
    return [
        {"role": "user", "content": "Book it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "id": "1", "content": r'{"said":"a \"b, c\"", "seats": []}', "error": True},
    ]


def checks() -> dict[str, Any]:
    """An evaluator's record: the database is wrong, one action has other arguments, one of two facts was told."""
    action = {"action_id": "1", "requestor": "assistant", "name": "find_order", "arguments": {"order_id": "#W1"}}
    told = [{"info": "on its way", "met": True}, {"info": "tomorrow", "met": False}]
    return {
        "reward": 0.0,
        "db_check": {"db_match": False, "db_reward": 0.0},
        "action_checks": [{"action": action, "action_match": False, "action_reward": 0.0}],
        "communicate_checks": told,
        "reward_basis": ["DB", "COMMUNICATE"],
        "reward_breakdown": {"DB": 0.0, "COMMUNICATE": 0.0},
    }


def error() -> dict[str, Any]:
    return {"error_tags": ["hallucination"], "severity": "critical", "turn_idx": 0, "reasoning": "He has no zebra."}


def opened(browser: Browser, page: Path, fragment: str = "") -> None:
    browser.open(page, fragment)
    browser.wait_for("document.documentElement.dataset.ready === 'list'")
    shown(browser, f"{fragment.partition('episode=')[2].partition('&')[0] or 0} ")


def shown(browser: Browser, what: str) -> None:
    """Wait until the open episode is this one: its number, and its tab."""
    browser.wait_for(f"document.getElementById('detail').dataset.shown.startsWith({what!r})")


def text(browser: Browser, selector: str) -> str:
    return str(browser.ask(f"document.querySelector({selector!r}).textContent"))


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose a value of a filter as a reader does: the select then says that it changed."""
    choice = f"document.getElementById('filter-{name}')"
    browser.ask(f"{choice}.value = {value!r}, {choice}.dispatchEvent(new Event('change'))")


def count(browser: Browser) -> str:
    return text(browser, "#count")
