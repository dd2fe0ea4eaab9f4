"""Writer: files of trajectories into one page.

Invariant: trajectories are read one after another and never held. A page appears under its name when it is whole. What
cannot be read has a row that says so, and a file that may still grow is named as such.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from rollout_service.audit.verify import CHECKS, verify
from rollout_service.errors import ConfigError, StorageError
from rollout_service.record.jsonl import UnfinishedLine
from rollout_service.record.manifest import read_manifest
from rollout_service.record.parquet import unfinished_part
from rollout_service.record.storage import Unreadable, salvage
from rollout_service.record.trajectory import Trajectory
from rollout_service.record.writing_lock import check_not_written
from rollout_service.report.facts import Facts
from rollout_service.viewer import bundle, episode
from rollout_service.viewer.blocks import BlockWriter, packed, to_line
from rollout_service.viewer.index import FileNote, index_block
from rollout_service.viewer.token_record import Heads, token_record
from rollout_service.viewer.token_texts import Vocabularies

FROM_THE_FILE_ALONE = ("record", "tokens", "prefix")
"""Checks of `verify` that need neither a tokenizer nor τ²-bench."""

_BREAKS_OFF = "breaks off: it is still being written, or its writer was killed."


def write_page(
    paths: Sequence[Path],
    output: Path,
    *,
    tokenizer: str | None = None,
    checks: Iterable[str] = FROM_THE_FILE_ALONE,
    progress: Callable[[int], None] = lambda count: None,
) -> list[FileNote]:
    """Write the page of these files to `output`, in place of a page that is there.

    Args:
        paths: `.jsonl` files, `.parquet` directories, or `.parquet` files.
        tokenizer: folder or hub name of the tokenizer, if the recorded name is not a folder on this machine.
        checks: checks of `verify` to make; see `rollout_service.audit.verify.CHECKS`.
        progress: called after each trajectory with their number so far.

    Raises:
        ConfigError: `output` does not end in `.html`, a path is named twice, or a check is unknown.
        StorageError: a path does not exist or its ending is unknown, none holds a trajectory, or the page cannot be
            written.
        CodecError: `tokenizer` cannot be loaded.
    """
    wanted = list(checks)
    _check_request(paths, output, wanted)
    sources = [(path, salvage(path)) for path in paths]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w+", encoding="ascii", dir=output.parent) as spool:
            gathered = _Gathered(spool, tokenizer, wanted)
            for (path, items), name in zip(sources, _names(paths), strict=True):
                gathered.read(path, name, items, progress)
            gathered.check_any()
            index = gathered.finish()
            _assemble(index, spool, output)
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error}.", "Make room, or choose another place.") from error
    return gathered.files


def _assemble(index: str, spool: IO[str], output: Path) -> None:
    """Put the page together beside its place, then give it its name."""
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as page:
            page.write(bundle.before_blocks(index))
            spool.seek(0)
            shutil.copyfileobj(spool, page)
            page.write(bundle.AFTER_BLOCKS)
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_request(paths: Sequence[Path], output: Path, checks: Sequence[str]) -> None:
    if output.suffix != ".html":
        raise ConfigError(f"--output: {output} does not end in .html.", "Name the page like page.html.")
    if unknown := [name for name in checks if name not in CHECKS]:
        raise ConfigError(f"checks: there is no check {unknown[0]!r}.", f"Choose from {', '.join(CHECKS)}.")
    real = [path.resolve() for path in paths]
    if twice := next((path for number, path in enumerate(real) if path in real[:number]), None):
        raise ConfigError(f"FILE: {twice} is named twice.", "Name each file once.")


class _Gathered:
    """What was read so far: rows in memory, the rest in the spool."""

    def __init__(self, spool: IO[str], tokenizer: str | None, checks: list[str]) -> None:
        self._spool, self._tokenizer, self._checks = spool, tokenizer, checks
        self._blocks = BlockWriter(spool.write)
        self._rows: list[dict[str, Any]] = []
        self._heads, self._vocabularies = Heads(), Vocabularies(tokenizer)
        self._first_error: StorageError | None = None
        self.files: list[FileNote] = []

    def read(
        self, path: Path, name: str, items: Iterable[Trajectory | Unreadable], progress: Callable[[int], None]
    ) -> None:
        """Take in the trajectories of a file, which the page calls by this name."""
        file = FileNote(name, note=_still_written(path))
        self.files.append(file)
        for item, violations in verify(items, tokenizer=self._tokenizer, checks=self._checks):
            if isinstance(item, Unreadable):
                self._first_error = self._first_error or item.error
                file.unreadable += 1
                if isinstance(item.error, UnfinishedLine):
                    file.note = file.note or f"Its last line {_BREAKS_OFF}"
                short = str(path), name  # a page may be passed on, so it names no folder
                problem = item.error.problem.replace(*short)
                row = episode.unreadable_row(item.trajectory_id.replace(*short), problem)
            else:
                row = self._taken(item, violations)
                file.readable += row["outcome"] != episode.UNREADABLE
                file.unreadable += row["outcome"] == episode.UNREADABLE
            self._rows.append(row | {"file": len(self.files) - 1})
            progress(len(self._rows))
        file.note = file.note or _not_whole(path, file)

    def _taken(self, trajectory: Trajectory, violations: list[Any]) -> dict[str, Any]:
        try:
            facts = Facts.of(trajectory)
            row = episode.row(trajectory, len(violations), facts)
            talk = to_line(episode.talk(trajectory, violations, facts))
        except Exception as error:  # an unforeseen record must not hide the others
            said = f"It cannot be shown: {type(error).__name__}: {error}. See what rollout-service verify says."
            return episode.unreadable_row(trajectory.trajectory_id, said)
        tokens = {"vocabulary": self._noted(trajectory), "segments": token_record(trajectory, self._heads)}
        talk_at, tokens_at = self._blocks.add("talk", talk), self._blocks.add("tokens", to_line(tokens))
        return row | {"talk": talk_at[0], "talkLine": talk_at[1], "tokenBlock": tokens_at[0], "tokenLine": tokens_at[1]}

    def _noted(self, trajectory: Trajectory) -> int | None:
        """Note the token ids that occur; returns the place of their vocabulary. None: there are no tokens. Such an
        episode may not even know its tokenizer, as when its environment actor died."""
        if not trajectory.segments:
            return None
        place, vocabulary = self._vocabularies.of(trajectory.provenance)
        for segment in trajectory.segments:
            vocabulary.note(segment.token_ids)
        return place

    def check_any(self) -> None:
        """Check that there is something to show.

        Raises:
            StorageError: no trajectory could be read.
        """
        if not any(file.readable for file in self.files):
            names = ", ".join(file.name for file in self.files)
            raise self._first_error or StorageError(f"{names} holds no trajectory.", "Collect some first.")

    def finish(self) -> str:
        """Write what is left to the spool; returns the element of the index."""
        self._blocks.close()
        self._spool.write(packed("heads", [to_line(head.tolist()) for head in self._heads.all]))
        tokenizers = []
        for number, vocabulary in enumerate(self._vocabularies.all):
            texts, problem = self._vocabularies.texts(vocabulary)
            self._spool.write(packed(f"vocabulary-{number}", [to_line(texts)]))
            tokenizers.append({"name": vocabulary.name, "fingerprint": vocabulary.fingerprint, "problem": problem})
        return index_block(self._rows, self.files, self._checks, tokenizers)


def _names(paths: Sequence[Path]) -> list[str]:
    """What the page calls the files: their names, with the folder's before it where two have the same."""
    names = [path.name for path in paths]
    parents = [path.resolve().parent.name for path in paths]
    return [f"{folder}/{name}" if names.count(name) > 1 else name for folder, name in zip(parents, names, strict=True)]


def _still_written(path: Path) -> str:
    try:
        check_not_written(path)
    except StorageError:
        return "A process still writes to it, so later episodes are missing here."
    return ""


def _not_whole(path: Path, file: FileNote) -> str:
    """Why a file may lack episodes that were asked for; empty: nothing says so."""
    if path.suffix == ".parquet" and path.is_dir() and unfinished_part(path) is not None:
        return f"Its last part {_BREAKS_OFF}"
    try:
        manifest = read_manifest(path)
    except StorageError:
        return "What was asked for is not known: the manifest beside it cannot be read."
    if manifest is None or manifest.others:
        return ""
    asked = sum(collection.episodes for collection in manifest.collections)
    if file.readable < asked:
        return f"It holds {file.readable:,} of the {asked:,} episodes that were asked for."
    return ""
