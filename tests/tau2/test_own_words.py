"""What the scripted user says in its own words: the scenario's facts, in the first person, worded by the seed."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.tau2 import gold, own_words, tasks
from tests.support import episodes

_FACTS = re.compile(r"[#\w.-]*[@#\d][\w@#.-]*")
"""Words with a digit, a `#` or an `@`: ids, numbers, prices, addresses."""


def _scenarios(domain):
    for reference in tasks.references(domain, "base"):
        task = tasks.get(reference)
        yield gold.opening(task), task.user_scenario.instructions.known_info or ""


def _facts(text):
    return sorted(fact.rstrip(".") for fact in _FACTS.findall(text))


@pytest.mark.parametrize("domain", ["retail", "airline"])
def test_every_number_id_and_address_of_the_scenario_is_told_as_it_stands_there(domain):
    for number, (reason, known) in enumerate(_scenarios(domain)):
        told = own_words.told(reason, known, random.Random(number))
        assert _facts(told) == _facts(f"{known} {reason}")


def test_the_user_speaks_of_itself_in_the_first_person():
    rng = random.Random(0)
    odd = r"\b(?:I (?:are|is|were)|[Yy]our (?:name|zip|email)|[Yy]ou (?:want to|live|received))\b"
    for reason, known in _scenarios("retail"):
        assert not re.search(odd, own_words.told(reason, known, rng))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("You are Mei Kovacs, and you want your money back.", "I am Mei Kovacs, and I want my money back."),
        ("If the agent asks you for it, tell the agent's boss.", "If you ask me for it, tell your boss."),
        ("You name is Ivan.", "My name is Ivan."),
        ("You'd keep it for yourself if it's yours.", "I'd keep it for myself if it's mine."),
        ("Say 'you lost your W', not you@your.com.", "Say 'you lost your W', not you@your.com."),
    ],
)
def test_you_becomes_i_and_the_agent_becomes_you_but_for_what_is_quoted(text, said):
    assert own_words.first_person(text) == said


@pytest.mark.parametrize("quoted", ['"I am what I am, and I want to go"', "'I got it. I am here'", "don't@zip.code"])
def test_what_is_quoted_is_told_as_it_is_written(quoted):
    for seed in range(20):
        assert quoted in own_words.told(f"You want {quoted} on John's card.", "You are Jo.", random.Random(seed))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200), st.integers())
def test_the_same_seed_gives_the_same_words_for_any_text(reason, known, seed):
    assert own_words.told(reason, known, random.Random(seed)) == own_words.told(reason, known, random.Random(seed))


def test_seeds_word_one_task_in_many_ways():
    reason, known = next(iter(_scenarios("retail")))
    assert len({own_words.told(reason, known, random.Random(seed)) for seed in range(40)}) >= 30


def test_the_gold_actions_solve_a_task_whose_user_speaks_in_its_own_words():
    plain = episodes.run("retail", 3)
    own = episodes.run("retail", 3, user__script={"own_words": True}, policy__script={"chatter": 1.0})
    assert (plain.reward, own.reward) == (1.0, 1.0)
    said = [message["content"] for message in own.messages if message["role"] == "user"]
    assert re.search(r"\bI(?: a|')m Yusuf Rossi in .*19122", said[0])
    assert {*said[1:-1]} <= {*own_words.PATIENCE}
    assert len({*said[1:-1]}) > 1
