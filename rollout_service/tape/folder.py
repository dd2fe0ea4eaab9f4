"""TapeFolder: a tape on disk, which many processes and nodes may write and read at once.

    tape.json                          the settings that all its answers were given under
    retail/12-3f9a…/task.json          a task, as it was
    retail/12-3f9a…/sample-0.seed-7.attempt-1.jsonl

Invariant: all answers of a tape come from the same models, settings and τ²-bench, and each task is there in one
version. Whoever opens a tape with others is refused before any episode runs. Files appear whole, under their final
names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rollout_service.errors import TapeError
from rollout_service.tape.recording import FORMAT, Recording, Take

SETTINGS, TASK = "tape.json", "task.json"

_LONGEST_NAME = 80


class TapeFolder:
    """The folder of one tape."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tasks: dict[str, dict[str, list[Path]]] = {}

    def open_for_writing(self, settings: dict[str, Any]) -> None:
        """Make the folder, if it is not there, and note the settings in it.

        Args:
            settings: JSON values.

        Raises:
            TapeError: it cannot be written, or it was recorded under other settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _put(self.path / SETTINGS, {"format": FORMAT, **settings})
            probe = self.path / f".{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise TapeError(
                f"tape.path: {self.path} cannot be written: {error}.",
                "Choose a folder that every node can write, or another tape.mode.",
            ) from None
        self.check_settings(settings)

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Check that the tape was recorded under these settings.

        Raises:
            TapeError: there is no tape, or its settings are others.
        """
        try:
            found = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(self.path) from None
        except (OSError, ValueError) as error:
            raise TapeError(f"tape.path: {self.path / SETTINGS} cannot be read: {error}.", "Restore it.") from None
        for name, value in {"format": FORMAT, **settings}.items():
            if found.get(name) != value:
                there, here = json.dumps(found.get(name)), json.dumps(value)
                raise TapeError(
                    f"tape.path: {self.path} was recorded with {name} {there}, and this service has {here}.",
                    "Use the same settings, or another tape.",
                )

    def check_task(self, domain: str, task_id: str, task_hash: str, content: Callable[[], dict[str, Any]]) -> None:
        """Check that the tape does not have the task in another version.

        Args:
            task_hash: that of its content, in hex.
            content: gives the content, as JSON values.

        Raises:
            TapeError: it has; says what differs.
        """
        for folder in self._folders(domain).get(_plain(task_id), ()):
            if folder.name.endswith(_version(task_hash)):
                continue
            found = _read_task(folder / TASK)
            if found is not None and found["id"] == task_id:
                raise TapeError(
                    f"tape.path: {self.path} holds task {task_id!r} of {domain} in another version: "
                    f"{_differing(found['task'], content())} differs.",
                    "Use the τ²-bench with which it was recorded, or another tape.",
                )

    def _folders(self, domain: str) -> dict[str, list[Path]]:
        """The folders of a domain's tasks by their names without the version, as they were at the first call."""
        if domain not in self._tasks:
            found = self._tasks[domain] = {}
            with contextlib.suppress(FileNotFoundError):
                for folder in (self.path / domain).iterdir():
                    found.setdefault(folder.name.rpartition("-")[0], []).append(folder)
        return self._tasks[domain]

    def put_task(self, take: Take, content: dict[str, Any]) -> Path:
        """The folder of the attempt's task, with the task's content in it.

        Raises:
            OSError: it cannot be written.
        """
        folder = self.of_task(take)
        folder.mkdir(parents=True, exist_ok=True)
        _put(folder / TASK, {"id": take.task_id, "task": content})
        return folder

    def of_task(self, take: Take) -> Path:
        """Where the recordings of the attempt's task are."""
        return self.path / take.domain / f"{_plain(take.task_id)}{_version(take.task_hash)}"

    def recordings(self, take: Take) -> list[Recording]:
        """What is recorded of this episode, in all its attempts. Finished attempts come first, the newest before
        the older ones.

        Raises:
            TapeError: a file cannot be read.
        """
        found = []
        for path in self.of_task(take).glob(f"{take.prefix}*.jsonl"):
            recording = Recording.read(path)
            if recording is not None:
                is_whole = recording.outcome is not None
                found.append((is_whole, recording.begun, recording.take.attempt, _number(path), recording))
        return [recording for *_, recording in sorted(found, key=lambda each: each[:4], reverse=True)]

    def finished(self, domains: Iterable[str]) -> Iterator[Recording]:
        """Every recording of an episode of these domains that was finished.

        Raises:
            TapeError: there is no tape, or a file cannot be read.
        """
        if not (self.path / SETTINGS).is_file():
            raise _missing(self.path)
        for domain in domains:
            for path in sorted((self.path / domain).glob("*/sample-*.jsonl")):
                recording = Recording.read(path)
                if recording is not None and recording.outcome is not None:
                    yield recording

    def of_same_task(self, take: Take, most: int) -> list[Recording]:
        """At most so many recordings of the attempt's task, whatever their sample and seed."""
        found = (Recording.read(path) for path in sorted(self.of_task(take).glob("sample-*.jsonl"))[:most])
        return [recording for recording in found if recording is not None]


def _missing(path: Path) -> TapeError:
    return TapeError(
        f"tape.path: there is no tape at {path}.", "Correct the path, or record one with tape.mode: record."
    )


def _plain(task_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", task_id)[:_LONGEST_NAME]


def _version(task_hash: str) -> str:
    return f"-{task_hash}"


def _number(path: Path) -> int:
    """1, or the number behind the attempt's in the file's name."""
    last = path.stem.rpartition(".")[2]
    return int(last) if last.isdigit() else 1


def _put(path: Path, value: dict[str, Any]) -> None:
    """Write a file, unless there is one. It appears whole."""
    if path.exists():
        return
    draft = path.with_name(f".{uuid.uuid4().hex}")
    draft.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    try:
        os.link(draft, path)  # unlike a rename, it never replaces what another process wrote meanwhile
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _read_task(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return None


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Dotted name of the first part of a task that differs."""
    for name in sorted(found.keys() | wanted.keys()):
        one, other = found.get(name), wanted.get(name)
        if one != other:
            inner = isinstance(one, dict) and isinstance(other, dict)
            return f"{name}.{_differing(one, other)}" if inner else name  # type: ignore[arg-type]
    return "nothing that can be named"
