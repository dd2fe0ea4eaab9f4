"""Real gold conversations in natural words, clean ones and ones with a planted flaw of the user simulator.

The course of each conversation (who acts, with which calls and results) is that of a real episode of a retail or
telecom task. Wording is drawn from lists, which hold what the heuristics find hard as well: polite closing questions,
facts of the instructions that a user may quote, short answers that come twice, and words that they do not know.
`python -m tests.support.planted` prints precision and recall of each heuristic; `--errors` prints what is wrong.
"""

from __future__ import annotations

import copy
import functools
import random
import re
import sys
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from rollout_service.record.user_flaws import HEURISTICS, Conversation, end_is_reached, found_in
from rollout_service.tau2 import tasks
from tests.support import episodes

CLEAN = "clean"
EACH = 60

_FIRST_PERSON = [
    (r"\byou are\b", "I am"),
    (r"\byou're\b", "I'm"),
    (r"\byourself\b", "myself"),
    (r"\byour\b", "my"),
    (r"\byou\b", "I"),
]
_ASKS = [
    "Could you please confirm that you would like me to go ahead with this? (yes/no)",
    "To verify your identity, please provide your email address, or your name and zip code.",
    "I found your account. Do you want me to proceed?",
    "Please restart your phone and tell me what the status bar shows.",
    "One moment while I look into this for you.",
    "Which of the two payment methods should be used?",
    "I will now check the options that are available. Please hold on.",
    "Can you check whether airplane mode is turned on?",
    "I just need your order number to continue.",
    "Before I cancel it: there is a fee of $12. Reply with yes to continue.",
]
_ANSWERS = [
    "Yes, please go ahead.",
    "Sure, that works for me.",
    "Okay, I can do that.",
    "Yes.",
    "Right, go on please.",
    "That sounds good to me, thanks.",
]
_FINISHED = [
    "All done. Your request has been processed.",
    "Everything is taken care of. Is there anything else I can help you with?",
    "I've updated your order. Can I help you with anything else today?",
    "The issue is resolved now. Please let me know if you need anything else!",
    "Your exchange was successfully requested. You will receive an email shortly. Anything else?",
    "It has been completed. Is there something else you would like to know?",
]
_THANKS = [
    "###STOP###",
    "No, that's all. Thank you! ###STOP###",
    "Great, thanks a lot for your help. ###STOP###",
    "No thanks, I'm good. ###STOP###",
    "Perfect, that is everything I needed. ###STOP###",
]
_TOO_EARLY = [
    "###STOP###",
    "Thanks! ###STOP###",
    "Okay, sounds good. ###STOP###",
    "Yes, please. ###STOP###",
    "Bye. ###STOP###",
]
_STATEMENTS = [
    "I see your account here.",
    "Your order contains two items, and the total is $371.20.",
    "Data roaming lets a phone use networks abroad.",
    "The thermostat comes in three versions.",
    "Orders can be returned within the usual time.",
    "Your line is active at the moment.",
    "Thank you for waiting.",
    "The order has been shipped on Monday.",
]
_NOTHING = [
    "",
    " ",
    "...",
    "…",
    "\n",
    "(no response)",
    "[silence]",
    "N/A",
    "—",
    "null",
    "No answer.",
    "?",
    "I have nothing to say.",
]
_OUT_OF_PART = [
    "My instructions say that I should not give my email address.",
    "As a simulated user, I would like to exchange this.",
    "I am supposed to say that I am frustrated now.",
    "Reason for call: see above. Known info: my name.",
    "I was told to pretend that I do not know my order number.",
    "According to the scenario, I want a refund.",
    "The persona is a 41-year-old office administrator.",
    "I'm role-playing a customer with a broken phone.",
    "I was given a story in which I want a refund.",
    "I must not tell you my email, that is part of my role.",
]


@dataclass(frozen=True)
class Planted:
    """A conversation, and what was planted in it."""

    kind: str
    conversation: Conversation


@functools.cache
def _played(each: int) -> list[Conversation]:
    """Real gold conversations of so many retail and so many telecom tasks."""
    found = []
    for domain in ("retail", "telecom"):
        for position in range(each):
            trajectory = episodes.run(domain, position * 3)
            part = str(tasks.get(trajectory.task).user_scenario)
            reached = end_is_reached(trajectory.reward_info)
            found.append(Conversation(trajectory.messages, trajectory.termination_reason, part, reached))
    return found


def _in_natural_words(it: Conversation, rng: random.Random) -> Conversation:
    """The same course, with words that people use, a question and an answer in between, and facts that are quoted."""
    messages: list[dict[str, Any]] = copy.deepcopy([dict(message) for message in it.messages])
    texts = [at for at, message in enumerate(messages) if message["role"] == "user" and message.get("content")]
    messages[texts[0]]["content"] = _first_person(messages[texts[0]]["content"])
    messages[texts[-1]]["content"] = rng.choice(_THANKS)
    for number, at in enumerate(texts[1:-1]):
        messages[at]["content"] = rng.choice(["Done.", "Done. It says OK now.", f"Okay, I did that ({number + 1})."])
    said = [at for at, message in enumerate(messages) if message["role"] == "assistant" and message.get("content")]
    messages[said[-1]]["content"] = rng.choice(_FINISHED)
    questions = rng.sample(_ASKS, rng.randint(1, 3))
    answers = [*rng.sample(_ANSWERS, 2), f"My zip code is {rng.randint(10000, 99999)}, if that helps."]
    between = [
        part
        for question, answer in zip(questions, answers, strict=False)
        for part in ({"role": "assistant", "content": question}, {"role": "user", "content": answer})
    ]
    messages[texts[0] + 1 : texts[0] + 1] = between
    return replace(it, messages=messages)


def _first_person(text: str) -> str:
    for pattern, word in _FIRST_PERSON:
        text = re.sub(pattern, word, text, flags=re.IGNORECASE)
    return text


def _texts(it: Conversation) -> list[int]:
    """Positions of the user's texts, without the first and the last."""
    return [at for at, _ in it.said][1:-1]


def _cut(it: Conversation, at: int, *last: dict[str, Any]) -> Conversation:
    return replace(it, messages=[*it.messages[:at], *last], is_reached=False)


def _premature_stop(it: Conversation, rng: random.Random) -> Conversation:
    at = rng.choice(_texts(it))
    asked = {"role": "assistant", "content": rng.choice(_ASKS)}
    return _cut(it, at + 1, asked, {"role": "user", "content": rng.choice(_TOO_EARLY)})


def _goal_not_reached(it: Conversation, rng: random.Random) -> Conversation:
    at = rng.choice(_texts(it))
    told = {"role": "assistant", "content": rng.choice(_STATEMENTS)}
    return _cut(it, at + 1, told, {"role": "user", "content": rng.choice(_THANKS)})


def _tool_misuse(it: Conversation, rng: random.Random) -> Conversation:
    at = rng.choice(_texts(it))
    name = rng.choice(["toggle_wifi", "get_order_details", "check_sim_card", "reboot", "run_speed_test"])
    is_repeated = rng.random() < 0.5
    calls: list[dict[str, Any]] = []
    for number in range(3 if is_repeated else 1):
        call = {"id": f"planted_{number}", "name": name, "arguments": {}, "requestor": "user"}
        calls.append({"role": "user", "content": None, "tool_calls": [call]})
        text = "Airplane Mode: OFF" if is_repeated else f"Error: Tool '{name}' not found."
        result = {"id": call["id"], "role": "tool", "content": text, "requestor": "user", "error": not is_repeated}
        calls.append(result)
    return replace(it, messages=[*it.messages[:at], *calls, *it.messages[at:]])


def _instructions_recited(it: Conversation, rng: random.Random) -> Conversation:
    at = rng.choice(_texts(it))
    lines = [line.strip() for line in it.instructions.splitlines()]
    lines = [
        line for line in lines if len(re.findall(r"\w+", line)) >= 10 and re.search(r"\b(?:you|your)\b", line, re.I)
    ]
    text = rng.choice(_OUT_OF_PART)
    if lines and rng.random() < 0.6:
        text = rng.choice(["", "Hello. ", "Sure! "]) + rng.choice(lines)
    return _said_at(it, at, text)


def _empty_answer(it: Conversation, rng: random.Random) -> Conversation:
    return _said_at(it, rng.choice(_texts(it)), rng.choice(_NOTHING))


def _repeated_answer(it: Conversation, rng: random.Random) -> Conversation:
    first, *others = [at for at, _ in it.said if it.messages[at - 1]["role"] == "assistant"][:-1]
    text = str(it.messages[first]["content"])
    text = rng.choice([text, text.rstrip(".") + "!", f"Well, {text}", text.upper(), _shorter(text)])
    return _said_at(it, rng.choice(others), text)


def _shorter(text: str) -> str:
    """Its first four fifths."""
    words = text.split()
    return " ".join(words[: max(4, 4 * len(words) // 5)])


def _said_at(it: Conversation, at: int, text: str) -> Conversation:
    messages = [dict(message) for message in it.messages]
    messages[at]["content"] = text
    return replace(it, messages=messages)


_PLANTERS = {
    "premature_stop": _premature_stop,
    "goal_not_reached": _goal_not_reached,
    "tool_misuse": _tool_misuse,
    "instructions_recited": _instructions_recited,
    "empty_answer": _empty_answer,
    "repeated_answer": _repeated_answer,
    CLEAN: lambda it, rng: it,
}


def planted(each: int = EACH, tasks_each: int = 20, seed: int = 0) -> list[Planted]:
    """So many conversations of each kind, clean ones among them."""
    rng, played = random.Random(seed), _played(tasks_each)
    made = []
    for kind, plant in _PLANTERS.items():
        for number in range(each):
            clean = _in_natural_words(played[number % len(played)], rng)
            made.append(Planted(kind, plant(clean, rng)))
    return made


def scores(conversations: list[Planted]) -> dict[str, tuple[float, float]]:
    """Precision and recall of each heuristic. What it finds in a conversation of another kind is wrong."""
    found = [(item.kind, found_in(item.conversation)) for item in conversations]
    table = {}
    for name in HEURISTICS:
        hits = sum(name in flaws for kind, flaws in found if kind == name)
        alarms = sum(name in flaws for kind, flaws in found if kind != name)
        total = sum(kind == name for kind, _ in found)
        table[name] = (hits / max(hits + alarms, 1), hits / total)
    return table


if __name__ == "__main__":
    everything = planted()
    table = Table("flaw", "precision", "recall", title=f"{EACH} planted conversations of each kind, {EACH} clean ones")
    for name, (precision, recall) in scores(everything).items():
        table.add_row(name, f"{precision:.3f}", f"{recall:.3f}")
    Console().print(table)
    for item in everything if "--errors" in sys.argv else []:
        flaws = found_in(item.conversation)
        if set(flaws) != {item.kind} - {CLEAN}:
            last = [str(message.get("content"))[:100] for message in item.conversation.messages[-3:]]
            print(f"{item.kind}, found {flaws}: {last}")
