"""Options of the commands that play episodes.

Invariant: each such command has all of them, at the end of its help and in the order in which they stand here.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from rollout_service.cli.options import Config, Settings, Tokenizer, read_limits, read_settings
from rollout_service.cli.playing import Place
from rollout_service.config import RolloutConfig
from rollout_service.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PlayOptions:
    """What the command was given."""

    budget: Annotated[
        list[str] | None,
        typer.Option(help="A limit, e.g. --budget usd=5; also user_tokens, policy_tokens, episodes, wall_seconds."),
    ] = None
    weight: Annotated[
        float | None, typer.Option(help="Share of the slots, relative to other collections' weights. Default: 1.")
    ] = None
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster: auto, or its address; or a gateway: https://… Default: embedded."),
    ] = None
    token_var: Annotated[
        str | None, typer.Option(help="With a gateway: NAME of the environment variable that holds its token.")
    ] = None
    start: Annotated[bool, typer.Option(help="With --address: start the service there if it does not run.")] = False
    tokenizer: Tokenizer = None
    config: Config = None
    settings: Settings = None

    def place(self) -> Place:
        """Which service plays.

        Raises:
            ConfigError: it is to be started, and there is no address.
        """
        if self.start and self.address is None:
            raise ConfigError("--start goes with --address.", "Leave it out: without an address a service is started.")
        return Place(self.address, self.token_var, self.start)

    def read_settings(self, domain: str | None, split: str | None, ids: list[str] | None) -> RolloutConfig:
        """As `options.read_settings`."""
        return read_settings(self.config, self.settings, self.tokenizer, domain, split, ids)

    def chosen(self) -> dict[str, Any]:
        """The fields of the collection that they set, see `playing.play`.

        Raises:
            ConfigError: a limit of the budget is no `name=value`.
        """
        return {"budget": read_limits(self.budget), "weight": self.weight}


def with_play_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command with these options one by one, as typer wants them, in place of its last parameter `options`."""
    names = [each.name for each in fields(PlayOptions)]

    @functools.wraps(command)
    def typed(**given: Any) -> int:
        options = PlayOptions(**{name: given.pop(name) for name in names})
        return command(**given, options=options)

    *own, _ = inspect.signature(command, eval_str=True).parameters.values()
    hints = typing.get_type_hints(PlayOptions, include_extras=True)
    shared = inspect.signature(PlayOptions).parameters.values()
    parameters = [*own, *(each.replace(annotation=hints[each.name]) for each in shared)]
    typed.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    return typed
