"""A scenario in the user's own words: first person, worded differently by each seed.

Invariant: the words change, the facts do not. Each number, id, quoted text and e-mail address of the scenario comes as
it is written there, in the scenario's order within its part. The same seed gives the same words.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence

_GREETINGS = ("", "Hi! ", "Hello. ", "Hi there, I hope you can help me. ", "Good morning. ", "Hey, quick request. ")
_CLOSINGS = ("", " Thanks!", " Thank you.", " Can you take care of that?", " Please go ahead.", " I appreciate it.")
PATIENCE = ("Okay.", "Sure, take your time.", "All right.", "No problem.", "Fine, I'll wait.")
"""What the user says while the agent keeps it waiting."""

_SYNONYMS: Sequence[tuple[str, Sequence[str]]] = (
    (r"\bI (?:want|wish|would like) to\b", ("I want to", "I'd like to", "I would like to", "I need to", "I wish to")),
    (r"\band (?:want|wish|would like) to\b", ("and want to", "and would like to", "and wish to", "and I'd like to")),
    (r"\bI (?:received|got)\b", ("I received", "I got")),
    (r"\bI am\b", ("I am", "I'm")),
    (r"\b(?:do not|don't)\b", ("do not", "don't")),
    (r"\bzip ?code\b", ("zip code", "zip", "ZIP code")),
    (r"\bas soon as possible\b", ("as soon as possible", "soon", "as quickly as you can")),
)
"""Patterns of the first person, and what may stand in their place."""

_OBJECT_AFTER = {"about", "ask", "asks", "for", "from", "give", "gives", "help", "helps", "of", "on", "provides"} | {
    *("saves", "tell", "tells", "to", "with")
}
"""Words after which `you` is an object, so that it becomes `me`."""

_QUOTED = r"(?P<quoted>\"[^\"]*\"|(?<!\w)'[^'\n]{2,}'(?!\w)|\S*[@#]\S+)"
"""What stays as it is: quoted text, ids and e-mail addresses."""

_PERSONS = re.compile(
    _QUOTED + r"|(?P<agent>\b(?:the|an?) (?:human |customer service |service )?(?:agent|representative)\b)"
    r"(?P<agents>'s)?(?: (?P<verb>(?<!'s )[a-z]+s)\b)?"
    r"|\b(?P<to_be>you are|you were|are you|were you)\b"
    r"|\b(?P<yours>you(?= (?:name|user|reservation|mobile|email|zip)\b)|yours|yourself|your|you're)\b"
    r"|\b(?P<you>you(?:'(?:ve|d|ll))?)\b",
    re.IGNORECASE,
)
_TO_BE = {"you are": "I am", "you were": "I was", "are you": "am I", "were you": "was I"}
_FORMS = {"you": "my", "your": "my", "yours": "mine", "yourself": "myself", "you're": "I'm"}
"""Forms of `you` that stand for one other; some scenarios write `You name is`."""

_VERBS = {"is": "are", "was": "were", "has": "have", "does": "do"}


def first_person(text: str) -> str:
    """A scenario's text about `you` and the agent, as the user says it to the agent."""
    return _PERSONS.sub(_turned, text)


def _turned(found: re.Match[str]) -> str:
    if found["quoted"]:
        return found[0]
    if found["agent"]:
        who, verb = "your" if found["agents"] else "you", found["verb"]
        return who if verb is None else f"{who} {_VERBS.get(verb) or verb.removesuffix('s')}"
    if found["to_be"]:
        return _TO_BE[found["to_be"].lower()]
    if found["yours"]:
        turned = _FORMS[found["yours"].lower()]
        return turned[0].upper() + turned[1:] if found["yours"][0].isupper() else turned
    before = found.string[: found.start()].split()
    is_object = bool(before) and before[-1].lower() in _OBJECT_AFTER
    return "me" if is_object and found["you"] == "you" else "I" + found["you"][3:]


def told(reason: str, known: str, rng: random.Random) -> str:
    """What the user says first: who it is, what it wants, and all that the scenario lets it know.

    Args:
        reason: the scenario's reason for the call.
        known: what the scenario lets the user know of itself; may be empty.
        rng: draws the words.
    """
    parts = [part for part in (first_person(known).strip(), first_person(reason).strip()) if part.strip(". ")]
    if rng.random() < 0.5:
        parts.reverse()
    text = " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts)
    for pattern, words in _SYNONYMS:
        text = re.sub(f"{_QUOTED}|{pattern}", functools.partial(_one_of, words, rng), text)
    return (rng.choice(_GREETINGS) + text + rng.choice(_CLOSINGS)).strip()


def _one_of(words: Sequence[str], rng: random.Random, found: re.Match[str]) -> str:
    return found[0] if found["quoted"] else rng.choice(words)
