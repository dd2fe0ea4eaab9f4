"""A task's gold actions, split between the scripted policy and the scripted user.

Invariant: both sides derive their parts from the task alone, so they fit without any communication. Played without
mistakes, the conversation reaches the gold end state and says everything that must be communicated.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

from rollout_service.config import Latency, Script
from rollout_service.tau2 import compat

CHATTER = "One moment, please: I am looking into it."
"""The policy's idle remark. The scripted user answers it without moving on."""

GOODBYE = "I am sorry, there is nothing that I can do for you. Goodbye."
"""The words of a policy that does nothing."""

CALLS = "calls"
SAY = "say"
BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the scripted policy."""

    kind: str
    """`calls`, `say`, or `broken`: the first call without its closing brace."""
    text: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


def blocks(task: compat.Task) -> list[tuple[str, list[compat.Action]]]:
    """The gold actions, grouped into runs of one requestor: [("assistant", [...]), ("user", [...]), …]."""
    actions = (task.evaluation_criteria.actions or []) if task.evaluation_criteria else []
    return [(who, list(run)) for who, run in itertools.groupby(actions, key=lambda action: action.requestor)]


def user_blocks(task: compat.Task) -> list[list[compat.Action]]:
    """The user's own runs of actions."""
    return [actions for who, actions in blocks(task) if who == "user"]


def opening(task: compat.Task) -> str:
    """The user's first words: the scenario's reason for the call, or all of its instructions where they are one text.

    Such a text says when to end the conversation, so the words that do so are taken out.
    """
    instructions = task.user_scenario.instructions
    words = str(getattr(instructions, "reason_for_call", instructions))
    for signal in compat.STOP_SIGNALS:
        words = words.replace(signal, "")
    return words.strip() or "Hello."


def closing(task: compat.Task) -> str:
    """The policy's last words, with everything that must be communicated."""
    wanted = (task.evaluation_criteria.communicate_info or []) if task.evaluation_criteria else []
    return "All done." + (" For your records: " + "; ".join(wanted) + "." if wanted else "")


def policy_steps(task: compat.Task, agent: str, script: Script, rng: random.Random) -> list[Step]:
    """The scripted policy's turns, with the mistakes that `script` asks for. After them it repeats its last words."""
    steps: list[Step] = []
    run: list[tuple[str, dict[str, Any]]] = []

    def flush() -> None:
        size = script.calls_per_turn
        steps.extend(Step(CALLS, calls=tuple(run[start : start + size])) for start in range(0, len(run), size))
        run.clear()

    for action in _until_early_stop(task, script, rng):
        if action.requestor == "user" and agent != "solo":
            flush()
            if not (steps and steps[-1].kind == SAY and steps[-1].text != CHATTER):
                steps.append(Step(SAY, f"Please do the following on your side: {action.name}."))
            continue
        if rng.random() < script.chatter and agent != "solo":
            flush()
            steps.append(Step(SAY, CHATTER))
        call = (action.name, imperfect(action.arguments, script, rng))
        if rng.random() < script.malformed_call:
            flush()
            steps.append(Step(BROKEN, calls=(call,)))
        run.append(call)
    flush()
    steps.append(Step(CALLS, calls=(("done", {}),)) if agent == "solo" else Step(SAY, closing(task)))
    return steps


def _until_early_stop(task: compat.Task, script: Script, rng: random.Random) -> list[compat.Action]:
    actions = [action for _, run in blocks(task) for action in run]
    return list(itertools.takewhile(lambda _: rng.random() >= script.early_stop, actions))


def imperfect(arguments: dict[str, Any], script: Script, rng: random.Random) -> dict[str, Any]:
    """The arguments; with probability `script.wrong_argument` one of them is altered."""
    if rng.random() >= script.wrong_argument or not arguments:
        return arguments
    name = rng.choice(sorted(arguments))
    return {**arguments, name: _altered(arguments[name])}


def _altered(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "0"
    if isinstance(value, list):
        return value[:-1]
    if isinstance(value, dict) and value:
        first = min(value)
        return {**value, first: _altered(value[first])}
    return "unexpected"


def waiting_time(latency: Latency, rng: random.Random) -> float:
    """One draw of the latency, in seconds."""
    if latency.distribution == "uniform":
        return max(0.0, rng.uniform(latency.mean - latency.spread, latency.mean + latency.spread))
    if latency.distribution == "exponential":
        return rng.expovariate(1 / latency.mean) if latency.mean else 0.0
    return latency.mean
