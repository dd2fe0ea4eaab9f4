"""ModelRequest: what a language model is asked, as far as it decides the answer.

Invariant: two requests have the same key exactly if model, parameters, tools and messages are equal. Keys, headers,
addresses and time limits are not part of it, so nothing secret is either.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

_OF_TRANSPORT = {
    *("api_key", "api_base", "base_url", "api_version", "organization", "headers", "extra_headers", "extra_query"),
    *("timeout", "stream_timeout", "max_retries", "num_retries", "caching", "cache", "client", "_skip_mcp_handler"),
}
"""Arguments of a call that say how the model is reached."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request to a chat model."""

    model: str
    parameters: dict[str, Any]
    """Sampling parameters and everything else that may change the answer, by name."""
    tools: list[dict[str, Any]] | None
    messages: list[dict[str, Any]]

    @classmethod
    def of(cls, model: str, messages: list[dict[str, Any]], tools: Any = None, **arguments: Any) -> Self:
        """The request of a call with these arguments."""
        kept = {name: value for name, value in arguments.items() if name not in _OF_TRANSPORT and value is not None}
        return cls(model, kept, tools or None, messages)

    @property
    def key(self) -> str:
        """SHA-256 of the request, in hex."""
        return digest({name: getattr(self, name) for name in ("model", "parameters", "tools", "messages")})

    def since(self, before: ModelRequest | None) -> dict[str, Any]:
        """What is new against the request `before`: `after` messages are the same as there, then come `messages`; of
        the other fields, those that changed. A conversation can so be read line by line."""
        if before is None:
            return {"model": self.model, "parameters": self.parameters, "tools": self.tools} | {
                "after": 0,
                "messages": self.messages,
            }
        names = ("model", "parameters", "tools")
        changed = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(before, name)}
        same = common(self.messages, before.messages)
        return changed | {"after": same, "messages": self.messages[same:]}

    @classmethod
    def after(cls, before: ModelRequest | None, new: dict[str, Any]) -> Self:
        """The inverse of `since`.

        Raises:
            KeyError: a field is missing.
        """
        old: dict[str, Any] = (
            {} if before is None else {"model": before.model, "parameters": before.parameters, "tools": before.tools}
        )
        merged = old | new
        earlier = [] if before is None else before.messages[: new["after"]]
        return cls(merged["model"], merged["parameters"], merged["tools"], [*earlier, *new["messages"]])


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def common(one: list[Any], other: list[Any]) -> int:
    """How many of the first items are equal."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
