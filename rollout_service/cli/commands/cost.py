"""`cost`: what a collection will cost, before it is begun.

Invariant: a tape is only read. Money is spent by a pilot alone, which must be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rollout_service.cli.options import Config, Domain, Settings, Split, Tokenizer, read_settings
from rollout_service.cli.stderr import say
from rollout_service.config import RolloutConfig
from rollout_service.errors import ConfigError

if TYPE_CHECKING:
    from rollout_service.tape.consumption import Consumption


def cost(
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Episodes of the collection.")],
    tape: Annotated[Path | None, typer.Option(help="A tape's folder. Default: tape.path.")] = None,
    pilot: Annotated[
        int | None, typer.Option(min=1, help="Play so many episodes instead of reading a tape. They cost money.")
    ] = None,
    domain: Domain = None,
    split: Split = None,
    task: Annotated[list[str] | None, typer.Option(help="A task id. Repeat it for more.")] = None,
    tokenizer: Tokenizer = None,
    config: Config = None,
    settings: Settings = None,
) -> None:
    """Estimate what the user simulators and judges of a collection will cost, from a tape or a pilot."""
    from rollout_service.cli.report import print_estimate

    loaded = read_settings(config, settings, tokenizer, domain, split, task)
    path = tape or (None if loaded.tape.path is None else Path(loaded.tape.path))
    if tape is not None and pilot is not None:
        raise ConfigError("--tape and --pilot exclude each other.", "Give one of them.")
    if path is None and pilot is None:
        remedy = "Name a tape with --tape or tape.path, or play a few episodes: --pilot 8."
        raise ConfigError("cost has nothing to judge by.", remedy)
    if pilot is not None:
        say(f"Playing {pilot} episodes …")
        seen, source = _played(loaded, pilot), "just played"
    else:
        seen, source = _recorded(loaded, path), f"recorded in {path}"
    unknown = sum(each.usd is None for each in seen)
    if unknown:
        raise ConfigError(
            f"The cost of {unknown} of {len(seen)} episodes is not known: litellm has no price for a model.",
            "Set user.price, user.review.price or evaluation.judge.price.",
        )
    print_estimate(seen, n, source)


def _recorded(config: RolloutConfig, path: Path | None) -> Sequence[Consumption]:
    """What the finished episodes of the configured tasks on the tape consumed."""
    import rollout_service.preflight as preflight
    from rollout_service.tape.consumption import Consumption
    from rollout_service.tape.folder import TapeFolder

    chosen = {(each.domain, each.task_id) for each in preflight.check_tasks(config)}
    user, judge = config.user, config.evaluation.judge
    prices = {"user": user.price, "judge": judge.price, "review": user.review.price}
    found = TapeFolder(path or "").finished(config.tasks.domains)
    seen = [Consumption.of(each, prices) for each in found if (each.take.domain, each.take.task_id) in chosen]
    if not seen:
        raise ConfigError(
            f"The tape {path} has no finished episode of {', '.join(config.tasks.domains)} ({config.tasks.split}).",
            "Choose other tasks or another tape, or play a few episodes: --pilot 8.",
        )
    return seen


def _played(config: RolloutConfig, episodes: int) -> Sequence[Consumption]:
    """What so many new episodes consumed."""
    from rollout_service.client import RolloutClient
    from rollout_service.tape.consumption import Consumption

    with RolloutClient(config=config) as client:
        batch = client.collect(episodes)
    return [Consumption.of_trajectory(each) for each in batch.trajectories]
