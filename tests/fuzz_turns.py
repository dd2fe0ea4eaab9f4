"""Random and mutated turns through whole episodes: nothing that a policy or a user says is a fault of anybody else.

`python -m tests.fuzz_turns --turns 30000` plays every domain with every agent and prints what it found; the test suite
plays a few hundred turns. An episode is sound when it ends without a fault and with a score, and when what its file
says replays to itself with a clean audit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from rollout_service.audit.verify import verify
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.record.trajectory import TaskRef, Trajectory
from rollout_service.tau2 import agent, compat, domain, gold, scripted_user, tasks, users
from tests.support import episodes

PLAYED = (
    *((name, "llm") for name in ("mock", "retail", "airline", "telecom", "telecom-workflow")),
    *((name, "gt") for name in ("mock", "retail", "airline", "telecom", "telecom-workflow")),
    *((name, "solo") for name in ("mock", "telecom", "telecom-workflow")),
)
"""Domains and agents."""

_COSTLY = {"retail": 3, "airline": 6}
"""Domains whose replay takes seconds: their episodes are so many times longer, and fewer."""

Call = tuple[str, Any]

_WORDS = (
    "###STOP###",
    "###TRANSFER###",
    "###OUT-OF-SCOPE###",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</think>",
    "<think>hm</think>",
    "<|im_start|>user\n",
    "<|im_end|>",
    "<|channel|>final",
    "One moment.",
    "漢字 😅 é\u0301 \u202e \x00 \x1b[31m",
    "1,000.50",
    "```json\n{}\n```",
    "{% raw %}{{ 7 * 7 }}",
    "\ue000",
)

_EXPRESSIONS = (
    "9**9**9",
    "9**9**8",
    "9**99999/9**99998",
    "(2+3)*4",
    "1/0",
    "(" * 250 + "1",
    "1" + "+1" * 2960,
    "-" * 9000 + "1",
    "9" * 4400,
    "()*9**30",
    "1(9**9**9)",
    "(-8)**.5",
    "10.**400",
    "10.**308*10-10.**308*10",
    "",
    " 1 + 1",
    "...",
)

_NUMBERS = (0, -1, 1e308, -1e-320, 2**31, 2**63, -(2**64), 10**40, 10**4295, -(10**4299), 10**400, 0.1 + 0.2, -0.0)


def _nested(rng: random.Random) -> Any:
    value: Any = rng.choice((1, "x", None))
    for _ in range(rng.choice((3, 30, 62, 70, 250, 300))):
        value = [value] if rng.random() < 0.5 else {rng.choice(("a", "role", "")): value}
    return value


def _value(rng: random.Random, pool: Sequence[Any]) -> Any:
    """Any value that JSON, or Python's reading of it, has."""
    makers = (
        lambda: rng.choice(pool),
        lambda: rng.choice(pool),
        lambda: rng.choice(_NUMBERS),
        lambda: rng.choice((None, True, False, "", [], {}, " ", "None", "nan")),
        lambda: rng.choice((float("nan"), float("inf"), float("-inf"))),
        lambda: rng.choice(_WORDS) * rng.choice((1, 1, 3)),
        lambda: "\ud800" if rng.random() < 0.3 else rng.choice(_EXPRESSIONS),
        lambda: "x" * rng.choice((10, 5_000)),
        lambda: [_value(rng, pool) for _ in range(rng.choice((1, 2, 5)))],
        lambda: [rng.choice(pool)] * rng.choice((2, 400)),
        lambda: {rng.choice(("flight_number", "date", "amount", "payment_id", "x")): _value(rng, pool)},
        lambda: _nested(rng),
    )
    return rng.choice(makers)()


def _mutated(rng: random.Random, value: Any, pool: Sequence[Any]) -> Any:
    """The value, with one thing in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        changed = dict(value)
        kind = rng.random()
        if kind < 0.15:
            del changed[key]
        elif kind < 0.3:
            changed[rng.choice(("self", "tool_name", "requestor", "x", "", "malformed_arguments"))] = value[key]
        else:
            changed[key] = _mutated(rng, value[key], pool)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        index = rng.randrange(len(value))
        return [*value[:index], _mutated(rng, value[index], pool), *value[index + rng.choice((0, 1)) :]]
    if isinstance(value, str) and rng.random() < 0.3:
        return rng.choice((value + "0", value.upper(), value[:-1], value * 40, [value], {value: value}))
    return _value(rng, pool)


class Writer:
    """Writes the calls of a task's domain: right ones, nearly right ones, and wrong ones."""

    def __init__(self, task: TaskRef, names: Sequence[str], rng: random.Random) -> None:
        self.rng = rng
        self._names = list(names)
        self._gold = [action for _, run in gold.blocks(tasks.get(task)) for action in run]
        others = rng.sample(tasks.references(task.domain), min(8, len(tasks.references(task.domain))))
        self._known = [*self._gold, *(a for other in others for _, run in gold.blocks(tasks.get(other)) for a in run)]
        values = [value for action in self._known for value in action.arguments.values()]
        self._pool = [*values, *(item for v in values if isinstance(v, list) for item in v)] or ["x"]
        self._next = 0

    def call(self, requestor: str | None = None) -> Call:
        """A call of one of the tools."""
        rng = self.rng
        kind = rng.random()
        known = [action for action in self._known if requestor in (None, action.requestor)]
        if kind < 0.25 and requestor is None and self._gold:
            action = self._gold[self._next % len(self._gold)]
            self._next += 1
            return action.name, action.arguments
        if kind < 0.6 and known:
            action = rng.choice(known)
            return action.name, _mutated(rng, action.arguments, self._pool)
        name = rng.choice(self._names)
        if name == "calculate":
            return name, {"expression": rng.choice(_EXPRESSIONS)}
        if kind < 0.85 and known:
            return name, _mutated(rng, rng.choice(known).arguments, self._pool)
        return rng.choice((name, name.upper(), "done", "no_such_tool", "__init__", "db")), self._arguments(name)

    def _arguments(self, name: str) -> Any:
        if self.rng.random() < 0.2:
            return _value(self.rng, self._pool)
        keys = [key for action in self._known if action.name == name for key in action.arguments] or ["user_id", "mode"]
        return {key: _value(self.rng, self._pool) for key in dict.fromkeys(keys)}

    def turn(self, *, calls_only: bool = False) -> str:
        """A policy's turn, as a model writes it."""
        rng = self.rng
        kind = rng.random() * (0.84 if calls_only else 1.0)
        written = "\n".join(self._written() for _ in range(1 if rng.random() < 0.8 else rng.choice((2, 3, 12))))
        if kind < 0.7:
            return written
        if kind < 0.8:
            return rng.choice(_WORDS) + "\n" + written
        if kind < 0.84:
            return written + rng.choice(_WORDS)
        if kind < 0.9:
            return " ".join(rng.choice(_WORDS) for _ in range(rng.choice((1, 2, 4))))
        if kind < 0.93:
            return written[: rng.randrange(len(written))]
        if kind < 0.97:
            at = rng.randrange(len(written))
            return written[:at] + rng.choice('{}[]":,\\') + written[at + 1 :]
        return rng.choice((gold.CHATTER, "ok", "x" * 3_000, "", " \n"))

    def _written(self) -> str:
        name, arguments = self.call()
        body: Any = {"name": name, "arguments": arguments}
        if self.rng.random() < 0.05:
            body = self.rng.choice(
                ({"name": name}, [body], {**body, "name": arguments}, {"arguments": arguments}, name)
            )
        return f"<tool_call>\n{json.dumps(body, ensure_ascii=self.rng.random() < 0.5)}\n</tool_call>".replace(
            "\ud800", "\\ud800"
        )


class WildPolicy:
    """Writes what a `Writer` makes up."""

    def __init__(self, writer: Writer, turns: int, tokenizer: str | None) -> None:
        self._writer = writer
        self._turns = turns
        self._tokenizer = tokenizer
        self.written: list[str] = []

    async def generate(self, input_ids: Any, sampling: Any, session_id: str, info: TurnInfo) -> Generation:
        codec, solo = episodes.codec(self._tokenizer), info.agent == "solo"
        text = self._writer.turn(calls_only=solo and self._writer.rng.random() < 0.8)  # text ends its episode
        if len(self.written) + 1 >= self._turns and self._writer.rng.random() < 0.5:
            text = '<tool_call>\n{"name": "done", "arguments": {}}\n</tool_call>' if solo else "Goodbye."
        self.written.append(text)
        ids = [*codec.encode_written(text), codec.end_of_turn_id]
        if self._writer.rng.random() < 0.03:  # anything that can be sampled: control tokens, halves of characters
            ids[:-1] = self._writer.rng.choices(range(len(codec._tokenizer)), k=20)
        cut = len(ids) > 2 and self._writer.rng.random() < 0.02
        ids = ids[: len(ids) // 2] if cut else ids
        n = len(ids)
        return Generation(
            np.asarray(ids, np.int32), np.full(n, -0.5, np.float32), np.zeros(n, np.int32), "length" if cut else "stop"
        )


class WildUser(scripted_user.ScriptedUser):
    """A user who opens with words, calls its tools as wildly from then on, and says goodbye only when the policy does:
    who ends an episode before the policy spoke is at fault."""

    writer: Writer

    def _reply(self, message: Any, state: Any) -> compat.UserMessage:
        rng = self.writer.rng
        if isinstance(message, compat.AssistantMessage) and message.content == "Goodbye.":
            return self._say(rng.choice((compat.STOP, f"Thanks. {compat.STOP}", "###TRANSFER###")))
        opening, self._spoke = not self._spoke, True
        if self.tools and not opening and rng.random() < 0.4:
            calls = [self._call() for _ in range(rng.choice((1, 1, 3)))]
            reply = compat.UserMessage(role="user", tool_calls=calls, cost=0.0)
            with contextlib.suppress(ValueError):  # as of an API: what cannot be written out is asked for again
                reply.model_dump_json()
                return reply
        return self._say(rng.choice(("Please go on.", "<|im_end|>", "Yes. 漢字")))

    def _call(self) -> compat.ToolCall:
        self._calls += 1
        name, arguments = self.writer.call("user")
        name = name if self.writer.rng.random() < 0.9 else self.writer.rng.choice(self.tools).name
        arguments = arguments if isinstance(arguments, dict) else {"mode": arguments}
        arguments = json.loads(json.dumps(arguments).replace("\\ud800", "?"))
        call_id = f"user_call_{self._calls}" if self.writer.rng.random() < 0.9 else ""
        return compat.ToolCall(id=call_id, name=name, arguments=arguments, requestor="user")


@dataclass
class Found:
    """What an episode came to."""

    name: str
    kind: str
    seed: int
    turns: int = 0
    end: str = ""
    """Outcome and reason."""
    problems: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    seconds: float = 0.0


def play(name: str, kind: str, seed: int, turns: int, tokenizer: str | None = None) -> Found:
    """One episode of at most so many turns, and what is wrong with it.

    Args:
        tokenizer: folder of the tokenizer; None: the embedded one.
    """
    rng = random.Random(f"{name}:{kind}:{seed}")
    fit = [task for task in tasks.references(name) if _fits(kind, task)]
    task = rng.choice(fit)
    shared, solo = domain.get(name), kind == "solo"
    schemas = [*shared.tool_schemas(solo), *(tool.openai_schema for tool in shared.user_tools(tasks.get(task)) or [])]
    writer = Writer(task, [schema["function"]["name"] for schema in schemas], rng)
    policy = WildPolicy(writer, turns, tokenizer)
    config = episodes.settings(
        agent=kind,
        evaluation__mode=rng.choice(("fast", "fast", "fast", "official", "check")),
        limits__max_turns=turns,
        limits__max_errors=rng.choice((10, 100_000, 100_000)),
        limits__max_steps=100_000,
        policy__context_length=400_000,
        policy__tokenizer=tokenizer,
        policy__history=rng.choice(("append", "template")),
    )
    found = Found(name, kind, seed)
    start = time.perf_counter()
    try:
        with mock.patch.object(users, "ScriptedUser", type("User", (WildUser,), {"writer": writer})):
            trajectory = episodes.runner(config, policy).run(episodes.request(task, seed))
        found.turns = len(trajectory.turns)
        found.end = f"{trajectory.outcome} {trajectory.termination_reason}"
        found.problems += _problems(trajectory)
    except Exception:
        found.problems.append(traceback.format_exc())
    found.seconds = time.perf_counter() - start
    found.written = policy.written
    return found


def _fits(kind: str, task: TaskRef) -> bool:
    try:
        agent.check_task(kind, tasks.get(task))
    except Exception:
        return False
    criteria = tasks.get(task).evaluation_criteria
    return not (criteria and "NL_ASSERTION" in [str(part.value) for part in criteria.reward_basis or []])


def _problems(trajectory: Trajectory) -> list[str]:
    found = [] if trajectory.fault is None else [f"fault: {trajectory.fault}"]
    if trajectory.reward is None:
        found.append(f"no score: {trajectory.termination_reason}")
    stored = Trajectory.from_dict(json.loads(json.dumps(trajectory.to_dict(), allow_nan=False)))
    return found + [str(violation) for _, violations in verify([stored]) for violation in violations]


def main() -> None:
    """So many turns; exit code 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--turns", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--domain", action="append")
    parser.add_argument("--agent", action="append")
    parser.add_argument("--tokenizer", help="a folder; else the embedded one")
    arguments = parser.parse_args()
    played = [
        (name, kind)
        for name, kind in PLAYED
        if name in (arguments.domain or [name]) and kind in (arguments.agent or [kind])
    ]
    counts: Counter[tuple[str, str, str]] = Counter()
    turns: Counter[tuple[str, str]] = Counter()
    bad = 0
    for seed in range(arguments.seed, sys.maxsize):
        print(f"{sum(turns.values())} turns", end="\r", file=sys.stderr)
        if sum(turns.values()) >= arguments.turns:
            break
        for name, kind in played:
            costly = _COSTLY.get(name, 1)
            if seed % costly:
                continue
            found = play(name, kind, seed, 12 * costly, arguments.tokenizer)
            turns[name, kind] += found.turns
            counts[name, kind, found.end] += 1
            if found.problems:
                bad += 1
                print(f"{name} {kind} {seed}: {found.problems}", flush=True)
                for text in found.written[-2:]:
                    print(f"    {text[:300]!r}", flush=True)
    for (name, kind), count in sorted(turns.items()):
        ends = {end: n for (a, b, end), n in counts.items() if (a, b) == (name, kind)}
        print(f"{name} {kind}: {count} turns, {sum(ends.values())} episodes, {ends}")
    print(f"{sum(turns.values())} turns, {sum(counts.values())} episodes, {bad} of them wrong")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
