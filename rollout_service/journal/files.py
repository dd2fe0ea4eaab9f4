"""Files: which files of parts can go, as the journal gives their parts up.

Invariant: a file goes only when no part in it is needed and none can be added to it: it is full, or its writer has
begun another one since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rollout_service.journal.entries import Discarded, Entry, Stored
from rollout_service.record.part import Part
from rollout_service.record.part_files import OPEN_SECONDS

_CLOSED_SECONDS = 3 * OPEN_SECONDS
"""Age at which nothing is added to a file, and what was added is recorded."""

_LOOK_SECONDS = 60.0
"""Time between two looks for files that are not full."""


@dataclass(slots=True)
class _File:
    part: Part
    """One that lies in it."""
    since: float
    """When its first part was recorded."""
    needed: int = 0
    given_up: int = 0


class Files:
    """The files that a journal's entries name."""

    def __init__(self, needed: Iterable[Part]) -> None:
        """
        Args:
            needed: the parts that the journal held when it was opened. Nobody writes their files any more.
        """
        self._files: dict[str, _File] = {}
        self._looked = 0.0
        for part in needed:
            self._files.setdefault(part.name, _File(part, float("-inf"))).needed += 1

    def recorded(self, entries: Iterable[Entry], given_up: Iterable[Part], now: float) -> list[Part]:
        """Take note of entries that were recorded.

        Args:
            given_up: the parts that nobody needs any more.
            now: seconds that never go backwards.

        Returns:
            One part of each file that can go.
        """
        for entry in entries:
            part = entry.summary.part if isinstance(entry, Stored) else None
            if isinstance(entry, Discarded):
                part = entry.part
            if part is not None:
                self._files.setdefault(part.name, _File(part, now)).needed += 1
        touched = {}
        for part in given_up:
            touched[part.name] = file = self._files[part.name]
            file.needed -= 1
            file.given_up += 1
        if now >= self._looked + _LOOK_SECONDS:
            self._looked, touched = now, self._files
        gone = [file.part for file in touched.values() if _can_go(file, now)]
        for part in gone:
            del self._files[part.name]
        return gone


def _can_go(file: _File, now: float) -> bool:
    return not file.needed and (file.given_up >= file.part.of or now >= file.since + _CLOSED_SECONDS)
