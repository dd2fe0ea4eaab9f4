"""Recording: one attempt at an episode on the tape, as a file of JSON lines that people can read and diff.

Invariant: a file has one writer, which only appends whole lines, and no second one ever opens it. So a file that was
cut anywhere reads as its whole lines: an answer is on the tape or it is not. The first line says whose file it is; then
comes a line for each answer; the last one says how the episode ended. A file without it is one of an attempt that was
not finished.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rollout_service.errors import TapeError
from rollout_service.tape.request import ModelRequest

FORMAT = 1
"""Raised whenever a reader of the version before would misread a file."""


@dataclass(frozen=True, slots=True)
class Take:
    """Names one attempt at an episode."""

    domain: str
    task_id: str
    task_hash: str
    """Hash of the task's content, in hex."""
    sample_index: int
    seed: int
    attempt: int

    @property
    def prefix(self) -> str:
        """How the names of the episode's files begin, those of every attempt."""
        return f"sample-{self.sample_index}.seed-{self.seed}.attempt-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer."""

    asked: str
    """Who was asked: `user`, `judge` or `review`."""
    key: str
    request: ModelRequest
    answer: dict[str, Any]
    """The API's answer as it came, as litellm gives it."""
    unanswered: int = 0
    """Requests that failed before this one without any answer."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    """US dollars; None: not known."""
    seconds: float = 0.0
    """How long the answer took."""

    def to_dict(self, before: ModelRequest | None) -> dict[str, Any]:
        """The entry's line, where `before` is the request of the line above it."""
        return {
            "asked": self.asked,
            "key": self.key,
            "request": self.request.since(before),
            "answer": self.answer,
            "unanswered": self.unanswered,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
            "cost_usd": self.cost_usd,
            "seconds": round(self.seconds, 4),
        }

    @classmethod
    def from_dict(cls, line: dict[str, Any], before: ModelRequest | None) -> Self:
        """The inverse of `to_dict`.

        Raises:
            KeyError: a field is missing.
            ValueError: the key is not the request's.
        """
        request = ModelRequest.after(before, line["request"])
        if request.key != line["key"]:
            raise ValueError("the key is not that of the request, which was changed")
        return cls(
            line["asked"],
            line["key"],
            request,
            line["answer"],
            line["unanswered"],
            **line["usage"],
            cost_usd=line["cost_usd"],
            seconds=line["seconds"],
        )


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that was read."""

    take: Take
    entries: list[Entry]
    outcome: str | None
    """How the episode ended; None: the attempt was not finished."""
    begun: str = ""
    """When, in UTC, as 2026-01-31T09:00:00.000000+00:00; empty in files of earlier versions."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a file. A last line that was cut off is left out. None: nothing whole is in it.

        Raises:
            TapeError: a line cannot be read, or is of a newer format.
        """
        number = 1
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
            if not lines:
                return None
            header = json.loads(lines[0])
            _check_format(header["format"], path)
            entries: list[Entry] = []
            outcome = None
            for line in lines[1:]:
                number += 1
                value = json.loads(line)
                if "end" in value:
                    outcome = value["end"]
                    break
                entries.append(Entry.from_dict(value, entries[-1].request if entries else None))
            return cls(Take(**header["take"]), entries, outcome, str(header.get("begun", "")))
        except OSError as error:
            raise TapeError(f"tape.path: {path} cannot be read: {error}.", "Check the folder's rights.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TapeError(
                f"tape.path: line {number} of {path} cannot be read: {type(error).__name__}: {error}.",
                "Restore the file, or delete it and record again.",
            ) from None


def _check_format(found: int, path: Path) -> None:
    if found > FORMAT:
        raise TapeError(
            f"tape.path: {path} is of format {found}, and this version reads up to {FORMAT}.",
            "Use the version of rollout-service that wrote it, or a newer one.",
        )


class RecordingWriter:
    """Writes one file, from a new one on."""

    def __init__(self, folder: Path, take: Take) -> None:
        """
        Raises:
            OSError: the file cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._before: ModelRequest | None = None
        for number in itertools.count(1):
            self._path = folder / f"{take.prefix}{take.attempt}{'' if number == 1 else f'.{number}'}.jsonl"
            try:
                self._path.open("xb").close()
                break
            except FileExistsError:  # the same episode was recorded before
                continue
        begun = datetime.now(UTC).isoformat(timespec="microseconds")
        self._write({"format": FORMAT, "begun": begun, "take": asdict(take)})

    def append(self, entry: Entry) -> None:
        """Append an answer.

        Raises:
            OSError: it cannot be written.
        """
        self._write(entry.to_dict(self._before))
        self._before = entry.request

    def finish(self, outcome: str) -> None:
        """Append how the episode ended.

        Raises:
            OSError: it cannot be written.
        """
        self._write({"end": outcome})

    def _write(self, value: dict[str, Any]) -> None:
        try:
            line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair
            line = json.dumps(value).encode() + b"\n"
        with self._path.open("ab") as file:
            file.write(line)
