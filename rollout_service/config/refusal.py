"""Errors about settings.

Invariant: an error names the setting, where its value comes from, the problem and the remedy, and shows no secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

import rollout_service.config.names as names
from rollout_service.errors import ConfigError
from rollout_service.redaction import shown


class Refused(ValueError):
    """A value that a validator refuses with a remedy of its own.

    Args:
        problem: continues a sentence that begins with the setting's name ("is empty."), or begins with a colon.
        field: dotted name of the setting, or only its last part where the section does not know where it stands; empty:
            the field that is being validated.
    """

    def __init__(self, problem: str, remedy: str, field: str = "") -> None:
        super().__init__(f"{field} {problem} {remedy}".strip())
        self.field = field
        self.problem = problem
        self.remedy = remedy


def check_speaks(value: Any, field: str, supported: str) -> Any:
    """Check that a kind of agent or user is none of τ²-bench's that speak. Returns the value.

    Raises:
        Refused: it is one.
    """
    words = ("voice", "audio", "duplex", "streaming")
    if isinstance(value, str) and any(word in value.lower() for word in words):
        raise Refused(
            f"is {value!r}: voice and full-duplex conversations are not supported.",
            f"Choose {supported}: they write, one after the other.",
            field,
        )
    return value


def in_words(error: ValidationError, model: type[BaseModel], sources: Mapping[str, str] | None = None) -> ConfigError:
    """The error about the first problem, with the number of further ones.

    Args:
        model: the section that should have been built.
        sources: where values come from, by dotted name.
    """
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    refused = first.get("ctx", {}).get("error")
    if isinstance(refused, Refused) and refused.field:
        dotted = refused.field if "." in refused.field else ".".join([*path, refused.field])
    where = next((source for name, source in (sources or {}).items() if names.overlap(name, dotted)), None)
    source = "" if where is None else f" (from {where})"
    count = error.error_count() - 1
    more = f" ({count} more problems after this one.)" if count else ""
    if isinstance(refused, Refused):
        problem = refused.problem.removeprefix(dotted).lstrip()
        joint = "" if problem.startswith(":") else " "
        return ConfigError(f"{dotted}{source}{joint}{problem}", refused.remedy + more)
    problem, remedy = _problem(dotted, path, first, source, model)
    return ConfigError(problem, remedy + more)


def _problem(
    dotted: str, path: list[str], first: Mapping[str, Any], source: str, model: type[BaseModel]
) -> tuple[str, str]:
    """Problem and remedy of what pydantic refused."""
    if first["type"] == "extra_forbidden":
        return f"{dotted}: no such setting{source}.", _near(dotted, path, model)
    if first["type"] == "missing":
        return f"{dotted} is not set{source}.", "Set it."
    if first["type"] == "model_type":
        below = ", ".join(f"{dotted}.{name}" for name in names.section_at(model, path).model_fields)
        return (
            f"{dotted} is {shown(first['input'], dotted)}{source}, but it is a section.",
            f"Set what is in it: {below}.",
        )
    value = f"{dotted or 'config'} is {shown(first['input'], dotted)}{source}"
    if first["type"] in _BOUNDS:
        bound = next(iter(first["ctx"].values()))
        return f"{value}, out of its range.", f"Set it to {_BOUNDS[first['type']]} {bound}."
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{value}: {message}.", "Set it to a valid value."


_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
"""What pydantic calls a bound that was passed, and how a person says it."""


def _near(dotted: str, path: list[str], model: type[BaseModel]) -> str:
    """The remedy for a setting that does not exist: its new name, a similar name, or all valid ones."""
    if (renamed := names.new_name(dotted)) is not None:
        return f"It is called {renamed} now."
    siblings = list(names.section_at(model, path[:-1]).model_fields)
    near = difflib.get_close_matches(path[-1], siblings, n=1)
    full = [".".join([*path[:-1], name]) for name in near or siblings]
    return f"Did you mean {full[0]}?" if near else f"Valid here: {', '.join(full)}."
