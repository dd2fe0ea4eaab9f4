"""The types of arguments that a policy wrote without quotes, from the tools' schemas.

Invariant: a value becomes what its tool's schema says, never what it happens to look like: `00501` of a string stays a
string. Where the schema allows a string beside other types, a value is read as one of the others if it is written
exactly as one, else as the string. A value that is none of its types stays the text that was written, for the tool to
refuse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_ALL = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


class SchemaTypes:
    """The schemas of some tools."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            tools: in OpenAI's form.
        """
        self._parameters = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}

    def value(self, tool: str, key: str, written: str, *, python_words: bool) -> Any:
        """The value of an argument.

        Args:
            written: the text between the argument's delimiters.
            python_words: whether the template writes True, False and None; JSON's words are read too.
        """
        root = self._parameters.get(tool, {})
        schema = (root.get("properties") or {}).get(key)
        types = _ALL if schema is None else _types(schema, root)
        if types == {"string"} or (schema is not None and written in _strings(schema, root)):
            return written
        found, value = _parsed(written.strip(), python_words)
        if found and (_type(value) in types or (_type(value) == "integer" and "number" in types)):
            return value
        return written


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema allows."""
    if not isinstance(schema, Mapping) or depth > 16:
        return _ALL
    if isinstance(reference := schema.get("$ref"), str):
        return _types(_resolved(reference, root), root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if branches := schema.get(key):
            return frozenset().union(*(_types(branch, root, depth + 1) for branch in branches))
    if branches := schema.get("allOf"):
        return _ALL.intersection(*(_types(branch, root, depth + 1) for branch in branches))
    named = schema.get("type")
    if named is not None:
        types = frozenset({named} if isinstance(named, str) else named)
    elif "enum" in schema or "const" in schema:
        named_values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())]
        types = frozenset(_type(value) for value in named_values)
    elif "properties" in schema:
        types = frozenset({"object"})
    elif "items" in schema:
        types = frozenset({"array"})
    else:
        types = _ALL
    return types | {"null"} if schema.get("nullable") is True else types


def _strings(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The strings that a schema names one by one."""
    if not isinstance(schema, Mapping) or depth > 16:
        return set()
    if isinstance(reference := schema.get("$ref"), str):
        return _strings(_resolved(reference, root), root, depth + 1)
    named = {value for value in [*schema.get("enum", ()), schema.get("const")] if isinstance(value, str)}
    branches = [branch for key in ("anyOf", "oneOf", "allOf") for branch in schema.get(key) or ()]
    return named.union(*(_strings(branch, root, depth + 1) for branch in branches))


def _resolved(reference: str, root: Mapping[str, Any]) -> Any:
    value: Any = root
    for part in reference.removeprefix("#/").split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def _parsed(written: str, python_words: bool) -> tuple[bool, Any]:
    """Whether the text is a JSON value, and the value."""
    if python_words and written in _PYTHON_WORDS:
        return True, _PYTHON_WORDS[written]
    try:
        return True, json.loads(written, object_pairs_hook=_distinct, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False, None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
