"""Settings that are written in YAML: a file, or one value.

Invariant: a key that comes twice is refused, and no error repeats the text, since a secret may stand there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import rollout_service.config.arguments as arguments
from rollout_service.errors import ConfigError
from rollout_service.redaction import shown


def parse_value(text: str, source: str) -> Any:
    """The value that `text` is in YAML: `3`, `true`, `{retail: 2}`, …

    Raises:
        ConfigError: it is not YAML, or has a key twice; names the source.
    """
    try:
        return _parse(text, source)
    except (yaml.YAMLError, ValueError, RecursionError):
        problem = f"The {source} is {shown(text, source)}, which is not YAML."
        raise ConfigError(problem, "Quote it, or correct it.") from None  # PyYAML's own message repeats the text


def read_file(path: str | Path) -> dict[str, Any]:
    """The sections in a file.

    Raises:
        ConfigError: it cannot be read, is not YAML, has a key twice, or does not hold sections.
    """
    path = arguments.path("path", path)
    try:
        loaded = _parse(path.read_text(encoding="utf-8"), f"config file {path}")
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"The config file {path} is not YAML: {_without_text(error)}.", "Correct it.") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"The config file {path} holds a {type(loaded).__name__}.", "Its top level must be sections.")
    return loaded


def _parse(text: str, source: str) -> Any:
    """As `yaml.safe_load`, which silently takes the last of two equal keys.

    Raises:
        ConfigError: a key comes twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node, source)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_keys(root: yaml.Node, source: str) -> None:
    seen: set[int] = set()
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and lines.setdefault((key.tag, key.value), line) != line:
                    first = lines[key.tag, key.value]
                    raise ConfigError(
                        f"The {source} has {key.value!r} twice, in lines {first} and {line}; only one would count.",
                        "Put what belongs under it in one place.",
                    )
                nodes.append(value)


def _without_text(error: Exception) -> str:
    """The parser's message without the line that it shows and the words that it quotes."""
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    problem = getattr(error, "problem", None) or type(error).__name__
    return where + re.sub(r"'[^']{2,}'", "…", problem)
