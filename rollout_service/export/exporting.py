"""Exporting: from files of trajectories to a file or folder in another program's format.

Invariant: everything that can be refused is refused before the first trajectory is written. An option that a format
has no use for is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rollout_service.config.arguments as arguments
from rollout_service.errors import ConfigError, StorageError
from rollout_service.export import hf_dataset, inspect_log, sft_rows, tau2_results
from rollout_service.export.place import new_at
from rollout_service.export.selection import TOKENS, Selected, Selection
from rollout_service.report.reading import SAME


@dataclass(frozen=True, slots=True)
class _Format:
    write: Callable[..., None]
    """Writes what is selected to a path, with the format's own options."""
    ending: str
    """Ending of the output's name; empty: it is a folder."""
    same: tuple[str, ...]
    """Fields of `Provenance` in which the trajectories must agree."""
    options: tuple[str, ...] = ()
    """Options of its own."""
    may_replace: Callable[[Path], bool] = Path.is_file
    """Whether --overwrite may remove what is at the output."""
    is_run: bool = False
    """Whether it stands for a whole run, of which no trial may be chosen by its reward."""


FORMATS = {
    "tau2": _Format(tau2_results.write, ".json", SAME, ("max_steps", "max_errors"), is_run=True),
    "inspect": _Format(inspect_log.write, ".eval", SAME, is_run=True),
    "sft": _Format(sft_rows.write, ".jsonl", TOKENS, ("tokenizer",)),
    "hf": _Format(hf_dataset.write, "", TOKENS, may_replace=hf_dataset.is_dataset),
}
"""By name."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported."""

    output: Path
    trajectories: int
    left_out: dict[str, int]
    """Trajectories that are not in it, by reason."""


def export(
    files: Sequence[str | Path] | str | Path,
    to: str,
    output: str | Path,
    *,
    domain: str | None = None,
    reward: float | None = None,
    unique: bool = False,
    per_task: int | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Exported:
    """Export stored trajectories. Reads one trajectory at a time. Episodes without a reward are left out and counted.

    Args:
        files: `.jsonl` or `.parquet`, of one schema.
        to: a name in `FORMATS`.
        output: the new file, or folder.
        domain: only this domain's trajectories.
        reward: only those with at least this reward. Not for `tau2` and `inspect`, nor are the next two.
        unique: of a task's trajectories whose token ids are all equal, only the first.
        per_task: of each task only so many, the first ones.
        overwrite: replace what is at `output`, once the new one is complete.
        options: the format's own, see its `write`.

    Raises:
        ConfigError: an option is unknown or bad, or has no effect in this format.
        StorageError: a file is damaged, unfinished, being written or given twice; trajectories differ in what must be
            the same; nothing is selected; or `output` exists or cannot be written.
    """
    if to not in FORMATS:
        raise ConfigError(f"to is {to!r}.", f"Choose from {', '.join(FORMATS)}.")
    chosen = FORMATS[to]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in chosen.options:
            raise ConfigError(f"{name} has no effect in an export to {to}.", "Leave it out.")
    selection = _selection(domain, reward, unique, per_task)
    if chosen.is_run and selection.chooses:
        raise ConfigError(
            f"An export to {to} stands for a whole run: choosing trials would change its pass^k.",
            "Leave out reward, unique and per_task; a domain may be chosen.",
        )
    target = arguments.path("output", output, StorageError)
    if target.suffix != chosen.ending and chosen.ending:
        raise StorageError(f"{target}: the name does not end in {chosen.ending}.", f"Give one that does, for {to}.")
    paths = [files] if isinstance(files, str | Path) else list(files)
    sources = [arguments.path("files", path, StorageError) for path in paths]
    _check_keeps(target, sources)
    if overwrite and target.exists() and not chosen.may_replace(target):
        raise StorageError(
            f"{target} is no earlier export to {to}, so --overwrite does not replace it.", "Choose another output."
        )
    selected = Selected(sources, selection, chosen.same)
    with new_at(target, overwrite=arguments.truth("overwrite", overwrite)) as place:
        chosen.write(selected, place, **given)
    return Exported(target, selected.taken, dict(selected.left_out))


def _check_keeps(target: Path, sources: Sequence[Path]) -> None:
    """Check that no file that is exported is at the output, or in it."""
    for path in sources:
        if target.resolve() == path.resolve():
            raise StorageError(f"{target} is one of the files that are exported.", "Choose another output.")
        if target.resolve() in path.resolve().parents:
            raise StorageError(f"{path}, which is exported, lies in {target}.", "Choose another output.")


def _selection(domain: str | None, reward: float | None, unique: bool, per_task: int | None) -> Selection:
    if domain is not None and not isinstance(domain, str):
        raise ConfigError(f"domain is {domain!r}.", "Give a domain's name.")
    return Selection(
        domain,
        None if reward is None else arguments.number("reward", reward, 0.0, 1.0),
        arguments.truth("unique", unique),
        None if per_task is None else arguments.whole("per_task", per_task, 1),
    )
