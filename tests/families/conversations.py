"""Random conversations with tools: a seed always gives the same one."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Call = tuple[str, dict[str, Any]]

_STRING = {"type": "string"}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "find_order": {
        "order_id": _STRING,
        "zip": _STRING,
        "page": {"type": "integer"},
        "least": {"type": "number"},
        "open": {"type": "boolean"},
        "kind": {"type": "string", "enum": ["1", "all", "none"]},
        "since": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "change_order": {
        "items": {"type": "array", "items": _STRING},
        "address": {"type": "object", "properties": {"line": _STRING, "floor": {"type": "integer"}}},
        "note": _STRING,
    },
    "say_nothing": {"note": _STRING},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"The tool {name}.",
            "parameters": {
                "type": "object",
                "properties": {key: {"description": "A value.", **schema} for key, schema in keys.items()},
                "required": [],
            },
        },
    }
    for name, keys in _PARAMETERS.items()
]

_WORDS = [
    "order",
    "refund",
    "naïve",
    "漢字",
    "שלום",
    "🙂",
    "$3.50",
    "#W0123",
    "a_b",
    "x<y",
    "00501",
    "true",
    "null",
    "5",
    "1e5",
    "100%",
    "<b>bold</b>",
    "`code`",
    "**b**",
    "---",
    "it's",
    '{"k":1}',
    "[x](y)",
    "C:\\path",
    "\\n",
    '"quoted"',
    "1,000",
    "ok.",
    "tab\there",
]
_LOOKALIKES = ("00501", "5", "-3", "1.0", "1e5", "true", "True", "null", "None", "NaN", '"q"', "[1]", "{}", '{"a": 1}')
"""Strings that look like other types."""

_CONTROL = ("<|im_end|>", "<|im_start|>user\n", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|eot_id|>",
            "[TOOL_CALLS]", "<|user|>", "<|end|>")  # fmt: skip


@dataclass
class Turn:
    """A turn of the policy, and what is said to it."""

    content: str = ""
    calls: list[Call] = field(default_factory=list)
    reasoning: str | None = None
    replies: list[str] = field(default_factory=list)

    def message(self) -> Message:
        """The turn in OpenAI's form, with arguments as dicts."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": "call_0", "type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in self.calls
            ]
        return message

    def answers(self) -> list[Message]:
        """The messages that follow it."""
        if not self.calls:
            return [{"role": "user", "content": self.replies[0]}]
        return [{"role": "tool", "tool_call_id": f"call_{n}", "content": text} for n, text in enumerate(self.replies)]


@dataclass(frozen=True)
class Abilities:
    """What a template can write."""

    thinks: bool
    always_thinks: bool
    several_calls: bool
    text_beside_calls: bool


class Writer:
    """Writes one random conversation."""

    def __init__(self, seed: int, abilities: Abilities) -> None:
        self.rng = random.Random(seed)
        self._abilities = abilities

    def opening(self) -> list[Message]:
        """Everything before the policy's first turn, as τ²-bench has it: the assistant has greeted the user."""
        greeting = [{"role": "assistant", "content": "Hi! How can I help you today?"}] * (self.rng.random() < 0.8)
        system = {"role": "system", "content": f"<policy>\n{self.text(1, 12)}\n</policy>"}
        return [system, *greeting, {"role": "user", "content": self.text(1, 8)}]

    def turns(self) -> list[Turn]:
        """The policy's turns."""
        return [self._turn() for _ in range(self.rng.randint(1, 6))]

    def text(self, least: int, most: int) -> str:
        """Some words, without white space at their ends. Now and then one reads like a control token."""
        words = self.rng.choices(_WORDS, k=self.rng.randint(least, most))
        if words and self.rng.random() < 0.1:
            words[self.rng.randrange(len(words))] = self.rng.choice(_CONTROL)
        return self.rng.choice((" ", " ", "\n", "  ", "\n\n")).join(words).strip()

    def _turn(self) -> Turn:
        rng, abilities = self.rng, self._abilities
        turn = Turn()
        if abilities.thinks and (abilities.always_thinks or rng.random() < 0.8):
            turn.reasoning = self._plain(1, 8)
        if rng.random() < 0.55:
            turn.calls = [self._call() for _ in range(rng.randint(1, 3) if abilities.several_calls else 1)]
            if abilities.text_beside_calls and rng.random() < 0.4:
                turn.content = self._plain(1, 5)
            results = (self.text(0, 8), json.dumps({"items": [1, "x"], "t": self.text(1, 3)}), "", "Error: not found")
            turn.replies = [rng.choice(results) for _ in turn.calls]
        else:
            turn.content = self._plain(1, 8)
            turn.replies = [self.text(1, 8)]
        return turn

    def _plain(self, least: int, most: int) -> str:
        """Words of the policy. A template may take a control token in them for its own."""
        return " ".join(self.rng.choices(_WORDS[:-1], k=self.rng.randint(least, most))).strip()

    def _call(self) -> Call:
        name = self.rng.choice(list(_PARAMETERS))
        keys = [key for key in _PARAMETERS[name] if self.rng.random() < 0.6]
        return name, {key: self._value(_PARAMETERS[name][key], key) for key in keys}

    def _value(self, schema: dict[str, Any], key: str) -> Any:
        rng = self.rng
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if "anyOf" in schema:
            return rng.choice((None, 0, 20240501))
        values: dict[str, Any] = {
            "integer": lambda: rng.choice((0, 3, -1, 10**12)),
            "number": lambda: rng.choice((3.5, 0.1, 2.0, 1e-07, 1e22)),
            "boolean": lambda: rng.random() < 0.5,
            "array": lambda: [self._string() for _ in range(rng.randint(0, 3))],
            "object": lambda: {"line": self._string(), "floor": rng.randint(0, 9)},
            "string": self._string,
        }
        return values[schema["type"]]()

    def _string(self) -> str:
        return self.rng.choice((self.rng.choice(_LOOKALIKES), self.rng.choice(("#W0123", "")), self._plain(1, 4)))
