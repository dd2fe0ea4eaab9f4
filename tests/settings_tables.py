"""The tables of settings in docs/configuration.md, made from the configuration classes.

`make docs` writes them, and `--check` only looks whether they are up to date, as a test does. So every setting is
documented, and its description is written once, beside the field.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rollout_service.config import RolloutConfig
from rollout_service.config.names import section_of

PAGE = Path(__file__).parents[1] / "docs/configuration.md"
_TABLES = re.compile(r"(?<=<!-- settings: written by `make docs` -->\n).*?(?=<!-- end of settings -->)", re.DOTALL)
_HEADER = "| setting | values | default | meaning |\n|---|---|---|---|\n"


def sections(model: type[BaseModel] = RolloutConfig, name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section by its dotted name, the top level first, under an empty name."""
    yield name, model
    for field, info in model.model_fields.items():
        below = section_of(info.annotation)
        if below is not None:
            yield from sections(below, f"{name}.{field}".lstrip("."))


def tables() -> str:
    """One table for each section; a section that comes a second time is referred to the first."""
    first: dict[type[BaseModel], str] = {}
    texts = []
    for name, model in sections():
        at = first.setdefault(model, name)
        same = f"### {name}\n\nThe same settings as [{at}](#{at.replace('.', '')}).\n"
        texts.append(_table(name, model) if at == name else same)
    return "\n".join(texts)


def page() -> str:
    """The page with its tables up to date."""
    return _TABLES.sub(lambda _: f"\n{tables()}\n", PAGE.read_text())


def _table(name: str, model: type[BaseModel]) -> str:
    rows = []
    for field, info in model.model_fields.items():
        if section_of(info.annotation) is None:
            default = info.get_default(call_default_factory=True)
            cells = [f"`{name}.{field}`".replace("`.", "`"), _values(info.annotation), _default(default)]
            rows.append(f"| {' | '.join(cells)} | {_meaning(info.description)} |\n")
    title = f"### {name}\n\n" if name else "### Top level\n\n"
    text = " ".join((model.__doc__ or "").split()) + "\n\n"
    return title + text + _HEADER + "".join(rows)


def _values(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _values(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_values(kind) for kind in inner if kind is not type(None))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is dict:
        return "mapping"
    if origin in (list, tuple):
        return "list"
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}[annotation]


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return f"`{text}`"


def _meaning(description: str | None) -> str:
    return (description or "").replace("|", "\\|")


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit("docs/configuration.md does not fit the settings any more. Run `make docs`.")
