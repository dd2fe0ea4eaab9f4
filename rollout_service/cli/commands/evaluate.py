"""`evaluate`: pass^k of a policy, from the command line.

Invariant: episodes are played by τ²-bench's own limits unless the command is told otherwise, and what differs is said.
An episode that a fault ended is never counted as a failure. With an output, what is stored there is not played again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import rollout_service.cli.playing as playing
from rollout_service.cli.options import Domain, OutputFile, Split
from rollout_service.cli.play_options import PlayOptions, with_play_options
from rollout_service.config import RolloutConfig

_MOST_TASKS = 20
"""Tasks with fewer trials that are printed."""


@with_play_options
def evaluate(
    trials: Annotated[int, typer.Option(min=1, max=1000, help="Episodes of each task; pass^k up to this k.")] = 4,
    domain: Domain = None,
    split: Split = None,
    task: Annotated[list[str] | None, typer.Option(help="A task id. Repeat it for more. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed plays the same episodes.")] = 0,
    max_turns: Annotated[
        int | None, typer.Option(min=1, help="Most policy turns of an episode. Default: no limit, as in τ²-bench.")
    ] = None,
    output: OutputFile = None,
    resume: Annotated[bool, typer.Option(help="Go on with what the output has, if it exists.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the output, once the first task is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    *,
    options: PlayOptions,
) -> int:
    """Play every task several times in official conditions: pass^1 to pass^k with intervals, faults apart."""
    from rollout_service.collecting.evaluating import asked_for, conditions
    from rollout_service.record.evaluation import Evaluation

    how = playing.mode(output, resume=resume, overwrite=overwrite)
    place = options.place()
    own = options.read_settings(domain, split, task)
    is_started_here = place.address is None or place.start
    loaded = with_official_limits(own, options.settings or []) if is_started_here else own
    chosen = options.chosen() | asked_for(trials, None, {"seed": seed, "max_turns": max_turns})
    found = Evaluation(trials)
    with playing.opened(output, how) as file:
        played = playing.play(place, file, loaded, chosen, found.add)
        if output is not None:
            found = _stored(output, trials)
    found.conditions = conditions(played.config, max_turns)
    if as_json:
        print(json.dumps(found.to_dict() | {"ended_early": played.limit}, indent=1, ensure_ascii=False))
    else:
        _print(found, played, own if is_started_here else played.config, output)
    return playing.exit_code(found.summary, played.limit)


def with_official_limits(own: RolloutConfig, said: list[str]) -> RolloutConfig:
    """The settings with τ²-bench's own limits in place of those for training, except where a `--set` says otherwise."""
    from rollout_service.collecting.evaluating import OFFICIAL

    names = {"limits.max_steps": "max_steps", "limits.max_errors": "max_errors"}
    names |= {"policy.response_length": "response_length"}
    chosen = own.explicit().keys() - {pair.partition("=")[0] for pair in said}
    return own.with_overrides({dotted: OFFICIAL[name] for dotted, name in names.items() if dotted in chosen})


def _stored(path: Path, trials: int) -> Any:
    """The evaluation of all that the file has."""
    from rollout_service.record.evaluation import Evaluation
    from rollout_service.record.storage import iterate

    found = Evaluation(trials)
    found.add(iterate(path))
    return found


def _print(found: Any, played: playing.Played, training: RolloutConfig, output: Path | None) -> None:
    from rollout_service.cli.report import print_summary
    from rollout_service.cli.run_report import print_conditions, print_tables
    from rollout_service.report import tables

    seconds = None if played.progress is None else played.progress.seconds
    if played.progress is not None and found.summary.episodes != played.progress.summary.episodes:
        seconds = None  # a part of the episodes was played before
    print_summary(found.summary, seconds, where=output, limit=played.limit, is_replayed=played.config.tape.asks_nobody)
    print_tables(tables.of_evaluation(found, _MOST_TASKS))
    limits = training.limits.model_dump() | {"response_length": training.policy.response_length}
    print_conditions(found.conditions, limits)
