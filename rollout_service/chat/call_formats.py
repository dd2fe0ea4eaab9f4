"""The formats of tool calls that a codec can read, and what counts as exactly one call in each.

Invariant: strict, and linear in the length of the text. `problem()` accepts only a text that has every part of a call
once and in its place, and nothing else, and from which the parser read the same name and arguments. The parsers of the
`renderers` package find the blocks, but they fill in missing parts and skip unknown ones, so this check is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Read = tuple[str, list[str] | None]
"""A call's name and the names of its arguments, in order. None: the arguments are one JSON object."""


class NotACallError(ValueError):
    """The text is not exactly one call. The message is the status, which says why."""


def problem(format: str, raw: str, name: Any, arguments: Any) -> str | None:
    """Why `raw`, the text of a block, is not exactly one call. None: it is one.

    Args:
        format: of the block: the name of a `renderers` parser.
        name: the call's name, as that parser read it.
        arguments: the call's arguments, as that parser read them.
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
    check_keys(call, "name", "arguments")
    return call["name"], None


def check_keys(call: Any, name: str, arguments: str, others: frozenset[str] = frozenset()) -> None:
    """Check that a JSON value is an object with these keys, `others` optional, and no further ones.

    Raises:
        NotACallError: says what is missing or too much.
    """
    if not isinstance(call, dict):
        raise NotACallError("malformed_structure")
    if name not in call:
        raise NotACallError("missing_name")
    if arguments not in call:
        raise NotACallError("missing_arguments")
    if not call.keys() <= {name, arguments, *others}:
        raise NotACallError("unknown_key")


_FUNCTION = re.compile(r"\s*<function=([^<>\s]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>\s]+)>")
_FUNCTION_END = re.compile(r"</function>\s*\Z")


def _xml(raw: str) -> Read:
    """`<function=NAME>`, `<parameter=KEY>VALUE</parameter>` for each argument, `</function>`."""
    opening = _expect(_FUNCTION, raw, 0)
    position, keys = opening.end(), []
    while (parameter := _PARAMETER.match(raw, position)) is not None:
        value, position = _until("</parameter>", raw, parameter.end(), "<parameter=")
        _check_keys_once(value)
        keys.append(parameter[1])
        position = _past_space(raw, position)
    _expect(_FUNCTION_END, raw, position)
    return opening[1], _distinct(keys)


_GLM_NAME = re.compile(r"\s*([^<>\s]+)\s*")


def _key_and_value(raw: str) -> Read:
    """`NAME`, then `<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>` for each argument."""
    opening = _expect(_GLM_NAME, raw, 0)
    position, keys = opening.end(), []
    while position < len(raw):
        key, position = _until("</arg_key>", raw, _past("<arg_key>", raw, position), "<arg_key>")
        start = _past("<arg_value>", raw, _past_space(raw, position))
        value, position = _until("</arg_value>", raw, start, "<arg_value>")
        _check_keys_once(value)
        keys.append(key.strip())
        position = _past_space(raw, position)
    return opening[1], _distinct(keys)


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
    """The text before the next `tag`, and the position after that tag. If another `opening` comes first, a tag is
    missing."""
    end = raw.find(tag, start)
    if end < 0 or raw.find(opening, start, end) >= 0:
        raise NotACallError("malformed_structure")
    return raw[start:end], end + len(tag)


def _past_space(raw: str, position: int) -> int:
    while position < len(raw) and raw[position].isspace():
        position += 1
    return position


def _distinct(keys: list[str]) -> list[str]:
    if len(set(keys)) < len(keys):
        raise NotACallError("duplicate_key")
    if "" in keys:
        raise NotACallError("malformed_structure")
    return keys


def _loaded(text: str) -> Any:
    """The text's JSON value."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except NotACallError:
        raise
    except ValueError:
        raise NotACallError("invalid_json") from None


def json_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that stands at `start` of the text, and where it ends.

    Raises:
        NotACallError: there is none, or a key comes twice.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except NotACallError:
        raise
    except ValueError:
        raise NotACallError("invalid_json") from None


def _check_keys_once(value: str) -> None:
    """Raise if a key comes twice in an argument's JSON. Text that is not JSON is left to the parser."""
    try:
        _loaded(value)
    except NotACallError as error:
        if str(error) == "duplicate_key":
            raise


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):  # Python keeps the last one, other readers the first
        raise NotACallError("duplicate_key")
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
