"""Flaws of a user simulator in a finished conversation, found by heuristics.

Invariant: what is found stands beside the reward and never changes it. Each heuristic is a pure function of the
conversation; its docstring says what it misses. None of them asks a model, so they cost no money and little time, and
they are no verdict: a flaw says that the conversation is worth a look.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout_service.termination import TerminationReason

Message = Mapping[str, Any]

SIGNALS = re.compile(r"###(?:STOP|TRANSFER|OUT-OF-SCOPE)###")
"""Words with which τ²'s user simulators end a conversation."""

_STOP = "###STOP###"

_ASKS = re.compile(
    r"\?\s*(?:\(?\s*yes\s*/\s*no\s*\)?)?\W*$|\b(?:please|kindly|could you|can you|would you)\b[^.!?]*"
    r"\b(?:confirm|provide|tell|let me know|share|check|try|turn|toggle|restart|verify|reply|do the following|choose)\b"
    r"|\b(?:one moment|bear with me|hold on|give me a (?:moment|second)|i(?:'ll| will) (?:now|go ahead|look|check))\b",
    re.IGNORECASE,
)
"""What shows that the agent is not done: a question at the end, a request, or the promise to go on."""

_OFFERS = re.compile(
    r"\b(?:anything|something) else\b|\bfurther (?:help|assist\w*|questions)\b|\bmore (?:help|questions)\b"
    r"|\bif you (?:have|need) (?:any|more|further)\b",
    re.IGNORECASE,
)
"""A polite end, which is often a question."""

_SENTENCE_ENDS = re.compile(r"(?<=[.!?\n])")

_DECLINES = re.compile(r"^\W*(?:no\b|nope|nah|that(?:'s| is) (?:all|it|everything)|i(?:'m| am) (?:all set|good))", re.I)

_DONE = re.compile(
    r"\b(?:all done|done|completed?|successful\w*|all set|taken care of|resolved|fixed|processed|went through"
    r"|(?:has|have) (?:now )?been|is now|are now|i(?:'ve| have) (?:\w+ed|sent|made|put|set))\b",
    re.IGNORECASE,
)
"""The agent says that it did something."""

_CANNOT = re.compile(
    r"\b(?:un\s?able to|can(?:no|')t|not (?:able|possible|allowed|eligible)|transferr?\w*|denied|against (?:our|the)"
    r"|policy (?:does|do) not)\b",
    re.IGNORECASE,
)

_PLAYS = re.compile(
    r"\b(?:task instructions|reason for call|known info|unknown info)\s*:"
    r"|\bmy (?:task )?instructions\b|\bthe (?:scenario|persona|system prompt)\b"
    r"|\bi(?:'m| am| was| have been)? ?(?:instructed|told|supposed|asked) to"
    r" (?:play|act as|pretend|simulate|say|mention)\b"
    r"|\bas (?:an ai|a language model|a simulated (?:user|customer)|the user simulator)\b"
    r"|\b(?:i(?:'m| am) (?:simulating|role-?playing))\b",
    re.IGNORECASE,
)
"""Somebody who speaks of the part that it plays."""

_RUN = 8
"""Words in a row of the instructions that nobody says by chance."""

_NOTHING = re.compile(
    r"\W*|\W*(?:no (?:response|answer|reply|message|output)|silence|empty|blank|null|none|n/?a|undefined)\W*", re.I
)

_END = 1500
"""Characters at the end of the agent's last words that show whether it is done. `_ASKS` takes quadratic time, and a
policy that repeats itself writes tens of thousands of characters."""

_FEW_WORDS = 4
"""A text with fewer words may be said twice."""

_ALIKE = 0.9
"""Share of their words that two texts have in common when one repeats the other."""


@dataclass(frozen=True)
class Conversation:
    """What the heuristics look at."""

    messages: Sequence[Message]
    """As a trajectory has them."""
    termination_reason: str
    instructions: str = ""
    """The user simulator's part, as the task gives it."""
    is_reached: bool | None = None
    """Whether the databases and assertions are as the task wants them in the end; None: not known."""

    @functools.cached_property
    def said(self) -> list[tuple[int, str]]:
        """Position and text of each message of the user that is not only calls."""
        return [
            (at, str(message.get("content") or ""))
            for at, message in enumerate(self.messages)
            if message["role"] == "user" and not message.get("tool_calls")
        ]

    @functools.cached_property
    def stop(self) -> tuple[int, str] | None:
        """Position and text of the message with which the user said that all is done; None: it did not."""
        is_last = self.said and self.termination_reason == TerminationReason.USER_STOP
        return self.said[-1] if is_last and _STOP in self.said[-1][1] else None

    def heard_before(self, at: int) -> str:
        """What the agent said last before this position."""
        texts = (m.get("content") for m in reversed(self.messages[:at]) if m["role"] == "assistant")
        return str(next((text for text in texts if text), ""))

    def end_heard_before(self, at: int) -> str:
        """The end of it."""
        return self.heard_before(at)[-_END:]


def premature_stop(it: Conversation) -> list[int]:
    """The user ends the conversation as if all were done, while the agent waits for an answer or goes on working.

    It misses an end before the agent came to the matter at all, when its last words were a plain statement, and a
    question whose words it does not know. It takes a user for too early that decides not to answer a question, unless
    it says no.
    """
    if it.stop is None:
        return []
    at, text = it.stop
    last = it.end_heard_before(at)
    words = SIGNALS.sub("", text).strip()
    is_open = bool(_ASKS.search(_without_offers(last)))
    return [at] if is_open and not _DECLINES.match(words) else []


def _without_offers(text: str) -> str:
    """The text without the sentences that politely end the conversation."""
    return "".join(sentence for sentence in _SENTENCE_ENDS.split(text) if not _OFFERS.search(sentence))


def goal_not_reached(it: Conversation) -> list[int]:
    """The user ends the conversation as if all were done, but the end state is not what the task wants, and the agent
    neither said that it had done anything, nor that it could not.

    It misses a user that believes an agent's wrong claim (that is the agent's fault), one that asked for something
    else than its part says, and every task whose evaluation checks no end state.
    """
    if it.stop is None or it.is_reached is not False or premature_stop(it):
        return []
    at, _ = it.stop
    last = it.end_heard_before(at)
    return [] if _DONE.search(last) or _CANNOT.search(last) else [at]


def tool_misuse(it: Conversation) -> list[int]:
    """A call of the user's own tools that fails, or one that is made a third time in a row with the same arguments.

    It misses calls that work and that nobody asked for, wrong values that the tool takes, and a user that says that it
    did something without a call.
    """
    found, calls = [], {}
    row: list[tuple[str, str]] = []
    for at, message in enumerate(it.messages):
        if message["role"] == "user" and not message.get("tool_calls"):
            row = []
        for call in message.get("tool_calls") or []:
            if message["role"] == "user":
                calls[call.get("id")] = at
                row.append((call["name"], repr(sorted((call.get("arguments") or {}).items()))))
                if len(row) >= 3 and len(set(row[-3:])) == 1:
                    found.append(at)
        if message["role"] == "tool" and message.get("requestor") == "user" and message.get("error"):
            found.append(calls.get(message.get("id"), at))
    return sorted(set(found))


def instructions_recited(it: Conversation) -> list[int]:
    """The user says to the agent what only it should know: it speaks of its instructions or its part, or repeats eight
    words in a row of them in which it is addressed as "you".

    It misses instructions that are retold in the user's own words or in the first person, and short ones.
    """
    runs = _runs(it.instructions)
    return [at for at, text in it.said if _PLAYS.search(text) or not runs.isdisjoint(_rows(text))]


@functools.lru_cache(maxsize=64)
def _runs(instructions: str) -> frozenset[tuple[str, ...]]:
    return frozenset(row for row in _rows(instructions) if {"you", "your", "yourself"} & set(row))


def _rows(text: str) -> Iterator[tuple[str, ...]]:
    words = _words(text)
    return (tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9#@'-]+", text.lower().replace("’", "'"))


def empty_answer(it: Conversation) -> list[int]:
    """A message of the user that says nothing: no letters, or words that stand for nothing such as "(no response)".

    It misses polite emptiness ("I see."). Answers without any character never get into a conversation: they are asked
    for again, and counted in `user_usage.failed_requests`.
    """
    return [at for at, text in it.said if _NOTHING.fullmatch(text.strip()) and not SIGNALS.search(text)]


def repeated_answer(it: Conversation) -> list[int]:
    """The user says nearly the same as before, four words or more, though the agent said something else meanwhile.

    It misses repetitions in other words, and short ones. It does not count an answer to a question that the agent asked
    twice, nor what the user says right after its own tool call: two actions may well have the same result.
    """
    found = []
    earlier: list[tuple[list[str], list[str]]] = []
    for at, text in it.said:
        if at and it.messages[at - 1]["role"] == "tool":
            continue
        words, heard = _words(SIGNALS.sub("", text)), _words(it.heard_before(at))
        if len(words) >= _FEW_WORDS and any(_alike(words, said) and not _alike(heard, then) for said, then in earlier):
            found.append(at)
        earlier.append((words, heard))
    return found


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    if len(one) < len(other):
        one, other = other, one
    if len(other) < _ALIKE * len(one):
        return False
    return (Counter(one) & Counter(other)).total() >= _ALIKE * len(one)


HEURISTICS: Mapping[str, Callable[[Conversation], list[int]]] = {
    heuristic.__name__: heuristic
    for heuristic in (
        premature_stop,
        goal_not_reached,
        tool_misuse,
        instructions_recited,
        empty_answer,
        repeated_answer,
    )
}
"""By the name of what they find."""


def found_in(conversation: Conversation) -> dict[str, list[int]]:
    """What the heuristics find: by the name of each flaw that there is, the positions of the messages that show it."""
    found = {name: heuristic(conversation) for name, heuristic in HEURISTICS.items()}
    return {name: positions for name, positions in found.items() if positions}


def looked_for(
    messages: Sequence[Message],
    termination_reason: str,
    instructions: str | None,
    reward_info: Mapping[str, Any] | None,
) -> dict[str, list[int]] | None:
    """What a trajectory says of its user, see `found_in`. None: the user has no instructions, so no model plays it."""
    if instructions is None:
        return None
    return found_in(Conversation(messages, termination_reason, instructions, end_is_reached(reward_info)))


def end_is_reached(reward_info: Mapping[str, Any] | None) -> bool | None:
    """Whether databases and assertions are as the task wants them in the end, by what the evaluator says; None: it says
    nothing of them."""
    info = reward_info or {}
    checks = [check["met"] for check in info.get("env_assertions") or []]
    if (database := info.get("db_check")) is not None:
        checks.append(database["db_match"])
    return all(checks) if checks else None
