"""Dotted names of settings, such as `limits.max_turns`.

Invariant: what a name stands for follows from the fields of the settings' classes alone. A mapping that is a value (a
mix of domains, the arguments of an engine) is never taken for a section.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from rollout_service.errors import ConfigError
from rollout_service.redaction import shown

RENAMED = {
    "policy.environment": "policy.env_vars",
    "policy.environment_from": "policy.env_vars_from",
}
"""Settings of earlier releases that have another name now. The old name is refused and the new one shown."""


@functools.cache
def of_fields(model: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """Every setting below `model`, in order. A section that may be null counts as one setting."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        below = info.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            names.extend(of_fields(below, f"{prefix}{name}."))
        else:
            names.append(f"{prefix}{name}")
    return tuple(names)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field with this annotation holds, also one that may be null; None: it holds a value."""
    for kind in _kinds(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def section_at(model: type[BaseModel], path: Iterable[str]) -> type[BaseModel]:
    """The section at `path`, below `model`."""
    for name in path:
        model = section_of(model.model_fields[name].annotation) or model
    return model


def new_name(dotted: str) -> str | None:
    """The new name of a setting that was renamed. A section that is built by hand knows only the last part."""
    return next((new for old, new in RENAMED.items() if f".{old}".endswith(f".{dotted}")), None)


def overlap(one: str, other: str) -> bool:
    """Whether two names are one setting, or one of them is a section that holds the other."""
    shorter, longer = sorted((f"{one}.", f"{other}."), key=len)
    return longer.startswith(shorter)


def given(settings: Mapping[str, Any] | None, argument: str, model: type[BaseModel]) -> list[tuple[str, Any]]:
    """The leaves of settings that a caller gave as `argument`.

    Raises:
        ConfigError: it is no mapping with names, or names a setting twice.
    """
    if settings is None:
        return []
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise ConfigError(
            f"{argument} is {shown(settings)}.", "Give settings by dotted name: {'limits.max_turns': 40}."
        )
    return leaves(settings, model)


def leaves(tree: Mapping[str, Any], model: type[BaseModel]) -> list[tuple[str, Any]]:
    """Names and values in a tree of sections below `model`. An empty section has none.

    Raises:
        ConfigError: a name comes twice, as in `limits: {max_turns: 3}` and `limits.max_turns: 4`.
    """
    sections, mappings = _shapes(model)
    found: dict[str, Any] = {}

    def visit(below: Mapping[str, Any], prefix: str) -> None:
        for key, value in below.items():
            dotted = f"{prefix}{key}"
            if isinstance(value, Mapping) and dotted not in mappings and (value or dotted in sections):
                visit(value, f"{dotted}.")
            elif dotted in found:
                raise ConfigError(f"{dotted} is set twice, in two notations.", "Leave out one of them.")
            elif value is not None or dotted not in sections:
                found[dotted] = value

    visit(tree, "")
    return list(found.items())


def put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value in a tree of sections.

    Raises:
        ConfigError: a value stands where the name has a section.
    """
    *parents, leaf = dotted.split(".")
    for name in parents:
        below = tree.get(name)
        if below is None:
            below = tree[name] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"{dotted}: {name} is set to {shown(below, name)}, which has no parts.", "Set one of them."
            )
        tree = below
    tree[leaf] = value


@functools.cache
def _shapes(model: type[BaseModel]) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the sections that cannot be null, and of the fields whose value is a mapping."""
    sections: set[str] = set()
    mappings: set[str] = set()

    def visit(section: type[BaseModel], prefix: str) -> None:
        for name, info in section.model_fields.items():
            dotted, below = f"{prefix}{name}", section_of(info.annotation)
            if below is not None:
                if below is info.annotation:
                    sections.add(dotted)
                visit(below, f"{dotted}.")
            elif any(get_origin(kind) is dict for kind in _kinds(info.annotation)):
                mappings.add(dotted)

    visit(model, "")
    return frozenset(sections), frozenset(mappings)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a value with this annotation may have."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation
