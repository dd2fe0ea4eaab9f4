"""The journal's database: entries go in by transaction, and what is left to do comes out.

Invariant: a committed transaction survives the power loss that follows it, whole. Only the journal's owner writes: each
transaction checks that no other service took the journal over. An entry about a collection that ended changes nothing.
"""

from __future__ import annotations

import functools
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import rollout_service.journal.entries as entries
import rollout_service.journal.sampler_rows as sampler_rows
from rollout_service.collecting.drawing import SamplerPosition
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest
from rollout_service.collecting.spending import Spending
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.errors import ServiceError
from rollout_service.record.part import Part

VERSION = 4
"""Raised whenever an older release would misread the journal."""

_PAGE_BYTES = 1024
"""Small pages: a transaction changes few rows, and writes whole pages."""

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS collections (
  id TEXT PRIMARY KEY, client TEXT, request TEXT, plan BLOB, before TEXT, first_draw INTEGER, left INTEGER
);
CREATE TABLE IF NOT EXISTS submissions (collection TEXT PRIMARY KEY, id TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS draws (
  collection TEXT, number INTEGER, episodes TEXT, PRIMARY KEY (collection, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (collection TEXT PRIMARY KEY, spending TEXT, seconds REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS episodes (
  collection TEXT, episode INTEGER, attempt INTEGER, summary TEXT, PRIMARY KEY (collection, episode)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliveries (
  collection TEXT, number INTEGER, expired TEXT, acknowledged INTEGER, PRIMARY KEY (collection, number)
) WITHOUT ROWID;
"""
"""`collections.left`: number of groups that the reader acknowledges in all. It is not counted down there: the plan
beside it is large, and SQLite would read it each time. Episodes are `stored` ones; those of a group that was
acknowledged are removed with their parts.
`deliveries.acknowledged`: 1: it is; 2: the group was dropped, which does not count as one of those."""

_FROM_VERSION_2 = """
UPDATE collections SET left = left + (
  SELECT COUNT(*) FROM deliveries WHERE collection = collections.id AND acknowledged
)
"""

_REQUEST: TypeAdapter[CollectionRequest] = TypeAdapter(CollectionRequest)
_PLAN: TypeAdapter[list[EpisodeRequest]] = TypeAdapter(list[EpisodeRequest])
_SUMMARY: TypeAdapter[EpisodeSummary] = TypeAdapter(EpisodeSummary)
_SPENDING: TypeAdapter[Spending] = TypeAdapter(Spending)
_NUMBERS: TypeAdapter[tuple[int, ...]] = TypeAdapter(tuple[int, ...])


class Overtaken(Exception):
    """Another service owns the journal now."""


@dataclass(frozen=True, slots=True)
class OpenCollection:
    """A collection that has not ended, as far as it came."""

    asked: entries.Asked
    """Its plan has the groups that were drawn later, too."""
    stored: dict[int, entries.Stored]
    """By episode. Those of acknowledged groups are left out."""
    delivered: dict[int, tuple[int, ...]]
    """By group that was handed out and not acknowledged: its episodes that were too old."""
    acknowledged: list[int]
    """Those that were dropped included."""
    spent: entries.Spent | None = None
    """None: it has no budget, or has spent nothing."""
    dropped: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a journal holds."""

    collections: list[OpenCollection] = field(default_factory=list)
    samplers: list[SamplerPosition] = field(default_factory=list)
    spent: entries.Spent | None = None
    """What the service has spent; None: it has no budget, or has spent nothing."""
    version: int | None = None
    """Of the weights that the trainer gave last; None: not recorded."""


class Database:
    """An open journal, with this process as its owner. Use it in one thread at a time."""

    def __init__(self, path: Path | str) -> None:
        """Open the database, or make it.

        Raises:
            ServiceError: a newer release wrote it, or it is no journal.
            sqlite3.Error, OSError: the disk is full, cannot be written or fails.
        """
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._left: dict[str, tuple[int, int]] = {}
        """Of the collections that were asked for it: episodes of a group, and number of groups not acknowledged."""
        try:
            self._prepare(path)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, path: Path | str) -> None:
        try:
            version = self._execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise ServiceError(
                    f"The journal {path} has format {version}; this release knows formats up to {VERSION}.",
                    "Use the release of tau2-rollout-service that wrote it, or another folder for service.journal.",
                )
            self._execute(f"PRAGMA page_size={_PAGE_BYTES}")
            self._execute("PRAGMA journal_mode=WAL")
            self._execute("PRAGMA synchronous=FULL")
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {sampler_rows.TABLES} {_TABLES} {_FROM_VERSION_2 if 0 < version < 3 else ''};"
                f"PRAGMA user_version={VERSION};"
                "INSERT OR IGNORE INTO facts VALUES ('owner', 0);"
                "UPDATE facts SET value = value + 1 WHERE name = 'owner'; COMMIT;"
            )
            self.owner = int(self._fact("owner", 0))
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise ServiceError(
                f"{path} is no journal, or is damaged: {error}.", "Choose another folder for service.journal."
            ) from error

    def commit(self, transaction: Iterable[entries.Entry]) -> list[Part]:
        """Write the entries of the transaction, all or none. Returns when they are safe.

        Returns:
            The parts that nobody needs any more.

        Raises:
            Overtaken: another service owns the journal.
            sqlite3.Error: the disk is full, cannot be written or fails; nothing was written.
        """
        self._execute("BEGIN IMMEDIATE")
        try:
            if self._fact("owner", 0) != self.owner:
                raise Overtaken
            parts = [part for entry in transaction for part in self._apply(entry)]
            self._execute("COMMIT")
        except BaseException:
            self._left.clear()
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise
        return parts

    def _apply(self, entry: entries.Entry) -> list[Part]:
        match entry:
            case entries.Stored():
                return self._store(entry)
            case entries.Delivered():
                self._execute(
                    "INSERT INTO deliveries SELECT id, ?, ?, 0 FROM collections WHERE id = ? ON CONFLICT DO NOTHING",
                    (entry.group, _text(_NUMBERS, entry.expired), entry.collection_id),
                )
            case entries.Acknowledged():
                return self._acknowledge(entry)
            case entries.Asked():
                self._ask(entry)
            case entries.Dropped():
                return self._drop(entry)
            case entries.Drawn():
                self._draw(entry)
            case entries.Ended():
                return self._forget(entry.collection_id)
            case entries.Discarded():
                return [entry.part]
            case entries.Reopened():
                self._execute("UPDATE collections SET client = ? WHERE id = ?", (entry.client, entry.collection_id))
            case entries.Positioned():
                self._position(entry.sampler, entry.replaces)
            case entries.Served():
                self._execute("INSERT OR REPLACE INTO facts VALUES ('weight_version', ?)", (entry.version,))
            case entries.Spent():
                self._execute(
                    "INSERT OR REPLACE INTO spent SELECT ?1, ?2, ?3 WHERE ?1 = ?4 OR EXISTS "
                    "(SELECT 1 FROM collections WHERE id = ?1)",
                    (entry.collection_id, _text(_SPENDING, entry.spending), entry.seconds, entries.SERVICE),
                )
        return []

    def _ask(self, asked: entries.Asked) -> None:
        groups = len(asked.episodes) // asked.request.group_size if asked.groups is None else asked.groups
        plan = zlib.compress(_PLAN.dump_json(asked.episodes), 1)
        row = (
            asked.collection_id,
            asked.client,
            _text(_REQUEST, asked.request),
            plan,
            _text(_NUMBERS, asked.before),
            asked.first_draw,
            groups,
        )
        self._execute("INSERT OR IGNORE INTO collections VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        if asked.submission is not None:
            self._execute("INSERT OR REPLACE INTO submissions VALUES (?, ?)", (asked.collection_id, asked.submission))
        if asked.sampler is not None:
            self._position(asked.sampler)

    def _draw(self, drawn: entries.Drawn) -> None:
        row = (drawn.group, _text(_PLAN, drawn.episodes), drawn.collection_id)
        self._execute("INSERT INTO draws SELECT id, ?, ? FROM collections WHERE id = ? ON CONFLICT DO NOTHING", row)
        if drawn.sampler is not None:
            self._position(drawn.sampler)

    def _position(self, position: SamplerPosition, replaces: bool = False) -> None:
        sampler_rows.note(self._connection, position, replaces=replaces)

    def _store(self, stored: entries.Stored) -> list[Part]:
        key = (stored.collection_id, stored.episode)
        before = self._parts("collection = ? AND episode = ?", key) if stored.attempt > 1 else []
        written = self._execute(
            "INSERT OR REPLACE INTO episodes SELECT id, ?, ?, ? FROM collections WHERE id = ?",
            (stored.episode, stored.attempt, _text(_SUMMARY, stored.summary), stored.collection_id),
        )
        part = stored.summary.part
        if not written.rowcount:
            return [] if part is None else [part]
        return [replaced for replaced in before if replaced != part]

    def _acknowledge(self, entry: entries.Acknowledged) -> list[Part]:
        found = self._left.get(entry.collection_id) or self._counted(entry.collection_id)
        if found is None:
            return []
        size, left = found
        parts: list[Part] = []
        for group in entry.groups:
            changed = self._execute(
                "UPDATE deliveries SET acknowledged = 1 WHERE collection = ? AND number = ? AND NOT acknowledged",
                (entry.collection_id, group),
            )
            if not changed.rowcount:
                continue
            left -= 1
            parts += self._remove_group(entry.collection_id, group, size)
        if left == 0:
            return parts + self._forget(entry.collection_id)
        self._left[entry.collection_id] = size, left
        return parts

    def _drop(self, entry: entries.Dropped) -> list[Part]:
        found = self._left.get(entry.collection_id) or self._counted(entry.collection_id)
        if found is None:
            return []
        self._execute(
            "INSERT INTO deliveries VALUES (?, ?, '[]', 2) ON CONFLICT DO UPDATE SET acknowledged = 2",
            (entry.collection_id, entry.group),
        )
        return self._remove_group(entry.collection_id, entry.group, found[0])

    def _remove_group(self, collection_id: str, group: int, size: int) -> list[Part]:
        """Returns the parts of its episodes."""
        where, key = (
            "collection = ? AND episode >= ? AND episode < ?",
            (collection_id, group * size, (group + 1) * size),
        )
        parts = self._parts(where, key)
        self._execute(f"DELETE FROM episodes WHERE {where}", key)
        return parts

    def _counted(self, collection_id: str) -> tuple[int, int] | None:
        """As in `_left`; None: there is no such collection."""
        acknowledged = "SELECT COUNT(*) FROM deliveries WHERE collection = collections.id AND acknowledged = 1"
        found = self._execute(
            f"SELECT request, left - ({acknowledged}) FROM collections WHERE id = ?", (collection_id,)
        ).fetchone()
        return None if found is None else (_group_size(found[0]), found[1])

    def _forget(self, collection_id: str) -> list[Part]:
        self._left.pop(collection_id, None)
        parts = self._parts("collection = ?", (collection_id,))
        for table in ("draws", "episodes", "deliveries", "submissions", "spent"):
            self._execute(f"DELETE FROM {table} WHERE collection = ?", (collection_id,))
        sampler_rows.forget(self._connection, collection_id)
        self._execute("DELETE FROM collections WHERE id = ?", (collection_id,))
        return parts

    def _parts(self, where: str, values: Sequence[Any]) -> list[Part]:
        rows = self._execute(f"SELECT summary FROM episodes WHERE {where}", values)
        return [part for (text,) in rows if (part := _SUMMARY.validate_json(text).part) is not None]

    def recover(self) -> Recovered:
        """What the journal holds."""
        columns = "collections.id, client, request, plan, before, first_draw, left, submissions.id"
        found = f"SELECT {columns} FROM collections LEFT JOIN submissions ON collection = collections.id"
        return Recovered(
            [self._collection(*row) for row in self._execute(f"{found} ORDER BY collections.rowid")],
            sampler_rows.found(self._connection),
            self._spent(entries.SERVICE),
            self._fact("weight_version", None),
        )

    def _spent(self, collection_id: str) -> entries.Spent | None:
        found = self._execute("SELECT spending, seconds FROM spent WHERE collection = ?", (collection_id,)).fetchone()
        return None if found is None else entries.Spent(collection_id, _SPENDING.validate_json(found[0]), found[1])

    def _collection(
        self,
        collection_id: str,
        client: str,
        request: str,
        plan: bytes,
        before: str,
        first_draw: int,
        left: int,
        submission: str | None,
    ) -> OpenCollection:
        draws = self._execute("SELECT episodes FROM draws WHERE collection = ? ORDER BY number", (collection_id,))
        drawn = [episode for (text,) in draws.fetchall() for episode in _PLAN.validate_json(text)]
        episodes = self._execute(
            "SELECT episode, attempt, summary FROM episodes WHERE collection = ?", (collection_id,)
        ).fetchall()
        groups = self._execute(
            "SELECT number, expired, acknowledged FROM deliveries WHERE collection = ?", (collection_id,)
        ).fetchall()
        return OpenCollection(
            entries.Asked(
                collection_id,
                client,
                _REQUEST.validate_json(request),
                _PLAN.validate_json(zlib.decompress(plan)) + drawn,
                _NUMBERS.validate_json(before),
                first_draw,
                None,
                submission,
                left,
            ),
            {row[0]: entries.Stored(collection_id, row[0], row[1], _SUMMARY.validate_json(row[2])) for row in episodes},
            {number: _NUMBERS.validate_json(expired) for number, expired, is_over in groups if not is_over},
            [number for number, _, is_over in groups if is_over],
            self._spent(collection_id),
            [number for number, _, is_over in groups if is_over == 2],
        )

    def parts(self) -> list[Part]:
        """The parts that somebody needs."""
        return self._parts("TRUE", ())

    def close(self) -> None:
        """Close the database. Its log is merged into it."""
        self._connection.close()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    def _fact(self, name: str, default: Any) -> Any:
        row = self._execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else row[0]


@functools.lru_cache(64)
def _group_size(request: str) -> int:
    return _REQUEST.validate_json(request).group_size


def _text(adapter: TypeAdapter[Any], value: Any) -> str:
    return adapter.dump_json(value).decode()
