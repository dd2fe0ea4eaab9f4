"""Options that several commands have, and the settings that follow from them.

Invariant: an option and a `--set` never give the same setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rollout_service.config import RolloutConfig, parse_value
from rollout_service.errors import ConfigError

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, e.g. --set limits.max_turns=40. Repeat it for more.")
]
Domain = Annotated[
    str | None, typer.Option(help="A domain, or a mix with weights: retail=2,airline=1. Default: tasks.domain.")
]
Split = Annotated[str | None, typer.Option(help="train, test, base, … Default: tasks.split.")]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="Where to store: .jsonl or .parquet.")]
Tokenizer = Annotated[str | None, typer.Option(help="Folder or hub name of the policy's tokenizer.")]


def read_settings(
    path: Path | None,
    settings: list[str] | None,
    tokenizer: str | None,
    domain: str | None = None,
    split: str | None = None,
    ids: list[str] | None = None,
) -> RolloutConfig:
    """The settings: the file at `path`, the environment, then each `--set` and the options that set something.

    Raises:
        ConfigError: a setting is bad, or is given by two options.
    """
    overrides = _pairs("--set", settings, "section.field=value")
    given: dict[str, Any] = {
        "tasks.domain": domain,
        "tasks.split": split,
        "tasks.ids": ids or None,
        "policy.tokenizer": tokenizer,
    }
    given = {name: chosen for name, chosen in given.items() if chosen is not None}
    for name in given.keys() & overrides.keys():
        raise ConfigError(f"--set {name} is given, and an option that sets the same.", "Leave out one of them.")
    overrides |= given
    if domain is not None:
        overrides.setdefault("tasks.ids", None)  # the ids in a file belong to its own domain
    return RolloutConfig.load(path, overrides)


def read_limits(given: list[str] | None) -> dict[str, Any] | None:
    """The limits of a budget, each given as `name=value`; None: none is given.

    Raises:
        ConfigError: one is no such pair.
    """
    limits = _pairs("--budget", given, "usd=5")
    for name, value in limits.items():
        if value is None:
            raise ConfigError(f"--budget {name}= has no value.", f"Write --budget {name}=5, or leave it out.")
    return limits or None


def read_template_arguments(given: list[str] | None) -> dict[str, Any]:
    """What a chat template is given, each as `name=value`.

    Raises:
        ConfigError: one is no such pair.
    """
    return _pairs("--template-arguments", given, "enable_thinking=false")


def _pairs(option: str, given: list[str] | None, example: str) -> dict[str, Any]:
    """Values by name, from an option that is repeated."""
    found: dict[str, Any] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            missing = "name before the '='" if equals else "'='"
            raise ConfigError(f"{option} {pair}: there is no {missing}.", f"Write {option} {example}.")
        found[name] = parse_value(value, f"value of {option} {name}")
    return found
