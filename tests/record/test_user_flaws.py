"""Flaws of user simulators: what each heuristic finds, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_service.record import user_flaws
from rollout_service.record.user_flaws import Conversation, end_is_reached, found_in
from tests.support import planted

PART = "You are detail-oriented and want to make sure that your whole order is dealt with in one go."


def talk(*texts: str, reason: str = "user_stop", reached: bool | None = None) -> Conversation:
    """A conversation of texts by turns, the agent's first."""
    roles = ("assistant", "user")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
    return Conversation(messages, reason, PART, reached)


def call(name: str, number: int, *, error: bool = False) -> list[dict[str, Any]]:
    made = {"id": f"call_{number}", "name": name, "arguments": {}, "requestor": "user"}
    result = {"role": "tool", "id": made["id"], "requestor": "user", "content": "x", "error": error}
    return [{"role": "user", "content": None, "tool_calls": [made]}, result]


@pytest.mark.parametrize(
    ("last", "said", "is_flaw"),
    [
        ("Shall I cancel it?", "Yes. ###STOP###", True),
        ("Please confirm your address.", "###STOP###", True),
        ("One moment, I will check this.", "Thanks ###STOP###", True),
        ("It is cancelled. Is there anything else I can help you with?", "###STOP###", False),
        ("Would you like a receipt?", "No, thanks. ###STOP###", False),
        ("All done.", "###STOP###", False),
        ("Shall I cancel it?", "Yes.", False),
        ("Shall I cancel it?", "###TRANSFER###", False),
    ],
)
def test_an_end_while_the_agent_waits_or_works_is_premature(last, said, is_flaw):
    assert ("premature_stop" in found_in(talk(last, said))) == is_flaw


@pytest.mark.parametrize(
    ("last", "reached", "is_flaw"),
    [
        ("Your order contains two items.", False, True),
        ("Your order contains two items.", True, False),
        ("Your order contains two items.", None, False),
        ("Your order has been cancelled.", False, False),
        ("I cannot cancel this order.", False, False),
    ],
)
def test_an_end_without_the_goal_counts_only_if_the_agent_claimed_nothing(last, reached, is_flaw):
    assert ("goal_not_reached" in found_in(talk(last, "Thanks! ###STOP###", reached=reached))) == is_flaw


def test_failed_calls_and_calls_made_three_times_in_a_row_are_tool_misuse():
    failed = Conversation(call("no_such_tool", 0, error=True), "max_steps")
    assert found_in(failed) == {"tool_misuse": [0]}
    twice = [*call("reboot", 0), *call("reboot", 1)]
    assert found_in(Conversation(twice, "max_steps")) == {}
    assert found_in(Conversation([*twice, *call("reboot", 2)], "max_steps")) == {"tool_misuse": [4]}
    between = [*twice, {"role": "user", "content": "It is still off, sorry."}, *call("reboot", 2)]
    assert found_in(Conversation(between, "max_steps")) == {}


@pytest.mark.parametrize(
    ("text", "is_flaw"),
    [
        (PART, True),
        ("I'm detail-oriented and want my whole order dealt with in one go.", False),
        ("Task instructions: exchange the keyboard.", True),
        ("My instructions say that I should wait.", True),
        ("Your instructions helped, it works.", False),
    ],
)
def test_instructions_that_the_agent_is_told_are_recited(text, is_flaw):
    assert ("instructions_recited" in found_in(talk("Hi!", text))) == is_flaw


@pytest.mark.parametrize(("text", "is_flaw"), [("…", True), ("(no response)", True), ("No.", False), ("12", False)])
def test_a_message_that_says_nothing_is_empty(text, is_flaw):
    assert ("empty_answer" in found_in(talk("Hi!", text))) == is_flaw


def test_the_same_answer_to_something_else_is_repeated_but_not_to_the_same_question():
    asked, again = "Where do you live?", "I live in the red house."
    assert found_in(talk("Hi!", again, asked, again)) == {"repeated_answer": [3]}
    assert found_in(talk(asked, again, asked, again)) == {}
    assert found_in(talk("Hi!", "Yes, sure.", asked, "Yes, sure.")) == {}


def test_whether_the_end_is_reached_follows_from_databases_and_assertions():
    assert end_is_reached(None) is None
    assert end_is_reached({"db_check": None, "env_assertions": []}) is None
    assert end_is_reached({"db_check": {"db_match": True}, "env_assertions": [{"met": False}]}) is False
    assert end_is_reached({"db_check": {"db_match": True}}) is True


def test_planted_flaws_are_found_and_clean_conversations_are_left_alone():
    for name, (precision, recall) in planted.scores(planted.planted(tasks_each=3)).items():
        assert precision >= 0.75, name
        assert recall >= 0.75, name


@pytest.mark.parametrize("name", user_flaws.HEURISTICS)
def test_every_heuristic_says_what_it_misses(name):
    assert "It misses" in str(user_flaws.HEURISTICS[name].__doc__)


@pytest.mark.parametrize("words", ["please ", "if you ", "word ", "1", "? "])
def test_an_agent_that_repeats_itself_without_end_does_not_stall_the_process(words):
    assert found_in(talk("Hello!", "Hi.", words * 20_000, "Bye. ###STOP###", reached=False))


def test_long_answers_are_compared_in_little_time():
    answer = " ".join(map(str, range(30_000)))
    assert "repeated_answer" in found_in(talk("One?", answer, "Two?", f"{answer} ###STOP###"))
