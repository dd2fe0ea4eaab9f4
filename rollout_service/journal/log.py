"""The journal as an append-only log, for storage that several machines share: network file systems and mounted buckets.

Invariant: a committed transaction survives what follows it, whole. Each owner writes segments of its own, and nobody
appends to a file after an error. A transaction counts only if the owner still is the owner when it is written: whoever
takes the log over first says so, and then reads. An owner removes only what it has read, and only while it is one.

In the folder are `owner`, the number of the owner, which each new owner overwrites; `epoch-N`, made exclusively by
owner N; and segments `N-M.log`. A segment's line is the checksum (CRC-32) of a text and the text, in JSON: first what
the segment is, then one transaction a line. The first segment of an owner is a snapshot, which replaces all before it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from rollout_service.errors import ServiceError
from rollout_service.journal.database import Database, Overtaken, Recovered
from rollout_service.journal.entries import Acknowledged, Delivered, Dropped, Entry, Positioned, Served
from rollout_service.record.part import Part
from rollout_service.record.part_files import sync_folder

VERSION = 3
"""Raised whenever an older release would misread a segment."""

_ADAPTERS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in get_args(Entry)}

_OWNER, _EPOCH, _SEGMENT, _UNFINISHED = "owner", "epoch-", ".log", ".unfinished"


class Log:
    """An open log, with this process as its owner. Use it in one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the log in `folder`, or make it.

        Raises:
            ServiceError: a newer release wrote it, or it is damaged.
            Overtaken: another service took it over meanwhile.
            OSError: the disk is full, cannot be written or fails.
        """
        self._folder = folder
        self._state = Database(":memory:")
        self._segment: int | None = None
        self._numbers = itertools.count(1)
        folder.mkdir(exist_ok=True)
        for path in _segments(folder):  # a log that cannot be read is left to its owner
            with contextlib.suppress(FileNotFoundError):  # its owner replaces it by a snapshot now
                _lines(path)
        self.owner = self._take_over()
        """Number of this owner."""
        while True:
            try:
                self._compact(self._replay())
                return
            except FileNotFoundError:  # the snapshot of a former owner, or of the next one, has just replaced it
                self._check_owner()

    def commit(self, entries: Iterable[Entry]) -> list[Part]:
        """Write the entries in one transaction, all or none. Returns when they are safe.

        Returns:
            The parts that nobody needs any more.

        Raises:
            Overtaken: another service owns the log.
            OSError: the disk is full, cannot be written or fails. The entries may be found later nevertheless.
        """
        entries = list(entries)
        self._check_owner()
        try:
            if self._segment is None:
                self._segment = self._begin(f"{self._next_name()}{_SEGMENT}", is_snapshot=False)
            _write(self._segment, _line(_transaction(entries)))
        except OSError:
            self.close()
            raise
        self._check_owner()
        return self._state.commit(entries)

    def recover(self) -> Recovered:
        """What the log holds."""
        return self._state.recover()

    def parts(self) -> list[Part]:
        """The parts that somebody needs."""
        return self._state.parts()

    def close(self) -> None:
        """Close the segment."""
        if self._segment is not None:
            with contextlib.suppress(OSError):  # all that counts was synced
                os.close(self._segment)
        self._segment = None

    def _take_over(self) -> int:
        """Become the owner. The one that says so last has the highest number, so that its segments come last."""
        while True:
            number = 1 + max(_numbers(self._folder), default=0)
            with contextlib.suppress(FileExistsError):  # somebody else was faster
                os.close(os.open(self._folder / f"{_EPOCH}{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                self._say(number)
                if number == max(_numbers(self._folder)):
                    return number

    def _say(self, number: int) -> None:
        """Write who the owner is. In place, not by a rename: a network file system looks at the file again when it is
        opened."""
        owner = os.open(self._folder / _OWNER, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            _write(owner, f"{number:020d}".encode())
        finally:
            os.close(owner)
        sync_folder(self._folder)

    def _check_owner(self) -> None:
        owner = os.open(self._folder / _OWNER, os.O_RDONLY)  # anew: see `_say`
        try:
            if os.read(owner, 64) != b"%020d" % self.owner:
                raise Overtaken
        finally:
            os.close(owner)

    def _replay(self) -> list[Path]:
        """Returns the files that a snapshot replaces."""
        self._state.close()
        self._state = Database(":memory:")
        unfinished, segments = self._folder.glob(f"*{_UNFINISHED}"), _segments(self._folder)
        old = [*segments, *unfinished]
        for path in segments:
            os.utime(path)  # a mount that keeps sizes for a while asks for this one anew
            head, *transactions = _lines(path) or [{}]
            if head.get("snapshot"):
                self._state.close()
                self._state = Database(":memory:")
            for transaction in transactions:
                self._state.commit(_ADAPTERS[kind].validate_python(entry) for kind, entry in transaction)
        return old

    def _compact(self, old: Iterable[Path]) -> None:
        """Replace these files by a snapshot. Its name appears when it is whole."""
        name = self._next_name()
        snapshot = self._begin(f"{name}{_UNFINISHED}", is_snapshot=True)
        try:
            _write(snapshot, _line(_transaction(_entries(self._state.recover()))))
        finally:
            os.close(snapshot)
        (self._folder / f"{name}{_UNFINISHED}").rename(self._folder / f"{name}{_SEGMENT}")
        sync_folder(self._folder)
        self._check_owner()  # the next owner may be reading them
        for path in old:
            path.unlink(missing_ok=True)
        for number in _numbers(self._folder):
            if number < self.owner:
                (self._folder / f"{_EPOCH}{number}").unlink(missing_ok=True)

    def _next_name(self) -> str:
        return f"{self.owner:020d}-{next(self._numbers):020d}"

    def _begin(self, name: str, *, is_snapshot: bool) -> int:
        segment = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _write(segment, _line(json.dumps({"format": VERSION, "snapshot": is_snapshot}).encode()))
            sync_folder(self._folder)
        except OSError:
            os.close(segment)
            raise
        return segment


def _entries(found: Recovered) -> Iterator[Entry]:
    """Entries that make an empty journal hold the same."""
    for position in found.samplers:
        yield Positioned(position, replaces=True)
    if found.spent is not None:
        yield found.spent
    if found.version is not None:
        yield Served(found.version)
    for collection in found.collections:
        name = collection.asked.collection_id
        yield collection.asked
        acknowledged = tuple(sorted(set(collection.acknowledged) - set(collection.dropped)))
        for group in acknowledged:
            yield Delivered(name, group)
        yield Acknowledged(name, acknowledged)
        for group in collection.dropped:
            yield Dropped(name, group)
        yield from collection.stored.values()
        for group, expired in collection.delivered.items():
            yield Delivered(name, group, expired)
        if collection.spent is not None:
            yield collection.spent


def _transaction(entries: Iterable[Entry]) -> bytes:
    texts = (b'["%s",%s]' % (type(it).__name__.encode(), _ADAPTERS[type(it).__name__].dump_json(it)) for it in entries)
    return b"[" + b",".join(texts) + b"]"


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _write(file: int, content: bytes) -> None:
    """Write it whole, and sync it."""
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]
    os.fdatasync(file)


def _segments(folder: Path) -> list[Path]:
    """In the order in which they were begun."""
    return sorted(folder.glob(f"*{_SEGMENT}"))


def _numbers(folder: Path) -> list[int]:
    """The numbers of all owners that left a file behind."""
    begun = [path.name.removeprefix(_EPOCH) for path in folder.glob(f"{_EPOCH}*")]
    return [int(number) for number in (*begun, *(path.name.partition("-")[0] for path in _segments(folder)))]


def _lines(path: Path) -> list[Any]:
    """What a segment says. A last line that is torn is left out: it was never safe.

    Raises:
        ServiceError: a line before the last one is damaged, or a newer release wrote the segment.
    """
    found, lines = [], path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1]):  # a line without its end is torn
        checksum, _, text = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(text):
            found.append(json.loads(text))
        elif any(lines[number + 1 :]):
            raise ServiceError(
                f"The journal's file {path} is damaged in line {number + 1}.",
                "Choose another folder for service.journal.",
            )
    if found and found[0]["format"] > VERSION:
        raise ServiceError(
            f"The journal's file {path} has format {found[0]['format']}; this release knows formats up to {VERSION}.",
            "Use the release of tau2-rollout-service that wrote it, or another folder for service.journal.",
        )
    return found
