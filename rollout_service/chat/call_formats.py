"""The tool-call formats that a codec may read, and what is exactly one call in each.

Invariant: strict, and in time linear in the text. `problem()` passes only a text that has every part of a call once, in
its place, and nothing else, and of which the parser read the same name and the same arguments. The parsers of the
`renderers` package find the blocks; they fill in what is missing and pass over what they do not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Read = tuple[str, list[str] | None]
"""A call's name and the names of its arguments, in order; None: they are all in one JSON object."""


class NotACallError(ValueError):
    """The text is not exactly one call; the message is the status that says why."""


def problem(format: str, raw: str, name: Any, arguments: Any) -> str | None:
    """Why `raw`, the text of a block, is not exactly one call; None when it is.

    Args:
        format: of the block: a `renderers` parser's name.
        name, arguments: what that parser read in it.
    """
    try:
        written, keys = _FORMATS[format](raw)
    except NotACallError as error:
        return str(error)
    if written != name or (keys is not None and sorted(keys) != sorted(arguments)):
        return "malformed_structure"
    return None


def _json_object(raw: str) -> Read:
    """`{"name": …, "arguments": {…}}`."""
    call = _loaded(raw)
    if not isinstance(call, dict):
        raise NotACallError("malformed_structure")
    if "name" not in call:
        raise NotACallError("missing_name")
    if "arguments" not in call:
        raise NotACallError("missing_arguments")
    if len(call) > 2:
        raise NotACallError("unknown_key")
    return call["name"], None


_FUNCTION = re.compile(r"\s*<function=([^<>\s]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>\s]+)>")
_FUNCTION_END = re.compile(r"</function>\s*\Z")


def _xml(raw: str) -> Read:
    """`<function=NAME>`, `<parameter=KEY>VALUE</parameter>` for each argument, `</function>`."""
    opening = _expect(_FUNCTION, raw, 0)
    position, keys = opening.end(), []
    while (parameter := _PARAMETER.match(raw, position)) is not None:
        value, position = _until("</parameter>", raw, parameter.end(), "<parameter=")
        _refuse_repeats(value)
        keys.append(parameter[1])
        position = _past_space(raw, position)
    _expect(_FUNCTION_END, raw, position)
    return opening[1], _once(keys)


_GLM_NAME = re.compile(r"\s*([^<>\s]+)\s*")


def _key_and_value(raw: str) -> Read:
    """`NAME`, then `<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>` for each argument."""
    opening = _expect(_GLM_NAME, raw, 0)
    position, keys = opening.end(), []
    while position < len(raw):
        key, position = _until("</arg_key>", raw, _past("<arg_key>", raw, position), "<arg_key>")
        start = _past("<arg_value>", raw, _past_space(raw, position))
        value, position = _until("</arg_value>", raw, start, "<arg_value>")
        _refuse_repeats(value)
        keys.append(key.strip())
        position = _past_space(raw, position)
    return opening[1], _once(keys)


_DEEPSEEK_NAME = re.compile(r"\s*function<｜tool▁sep｜>(\w+)\s*")
_DEEPSEEK_ARGUMENTS = re.compile(r"```json\s*\n(.*)\n```\s*\Z", re.DOTALL)


def _fenced_json(raw: str) -> Read:
    """`function<｜tool▁sep｜>NAME`, then the arguments as an object in a fenced block."""
    opening = _expect(_DEEPSEEK_NAME, raw, 0)
    if opening.end() == len(raw):
        raise NotACallError("missing_arguments")
    _loaded(_expect(_DEEPSEEK_ARGUMENTS, raw, opening.end())[1])
    return opening[1], None


_FORMATS: dict[str, Callable[[str], Read]] = {
    "qwen3": _json_object,
    "qwen3.5": _xml,
    "glm": _key_and_value,
    "deepseek-v3": _fenced_json,
}

FORMATS = tuple(_FORMATS)
"""Names of the formats, in the order in which they are tried."""


def _expect(pattern: re.Pattern[str], raw: str, position: int) -> re.Match[str]:
    found = pattern.match(raw, position)
    if found is None:
        raise NotACallError("malformed_structure")
    return found


def _past(tag: str, raw: str, position: int) -> int:
    if not raw.startswith(tag, position):
        raise NotACallError("malformed_structure")
    return position + len(tag)


def _until(tag: str, raw: str, start: int, opening: str) -> tuple[str, int]:
    """The text before the next `tag`, and the position behind it. Another `opening` before it means that a tag is
    missing."""
    end = raw.find(tag, start)
    if end < 0 or raw.find(opening, start, end) >= 0:
        raise NotACallError("malformed_structure")
    return raw[start:end], end + len(tag)


def _past_space(raw: str, position: int) -> int:
    while position < len(raw) and raw[position].isspace():
        position += 1
    return position


def _once(keys: list[str]) -> list[str]:
    if len(set(keys)) < len(keys):
        raise NotACallError("duplicate_key")
    if "" in keys:
        raise NotACallError("malformed_structure")
    return keys


def _loaded(text: str) -> Any:
    """The JSON value that the text is."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except NotACallError:
        raise
    except ValueError:
        raise NotACallError("invalid_json") from None


def _refuse_repeats(value: str) -> None:
    """A key twice in an argument's JSON; text that is no JSON is the parser's to judge."""
    try:
        _loaded(value)
    except NotACallError as error:
        if str(error) == "duplicate_key":
            raise


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):  # Python would keep the last, another reader the first
        raise NotACallError("duplicate_key")
    return dict(pairs)
