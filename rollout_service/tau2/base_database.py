"""BaseDatabase: one parsed τ² database, shared by all episodes of a process, and the hash of an episode's version.

Invariant: `digest` is exactly τ²'s own hash of the same contents (`get_dict_hash` of `model_dump()`: SHA-256 of the
sorted JSON). It is assembled from the JSON of the records, and only records that an episode changed are serialized
again. Pydantic and `json` would serialize the whole database, which takes 40 to 300 ms under the interpreter's lock.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from rollout_service.tau2 import overlay

_REMOVED = object()


@dataclass(frozen=True, slots=True)
class Changes:
    """How a database differs from its base."""

    tables: dict[str, dict[str, Any]]
    """Records that were changed, added or removed, by table and key."""
    fields: dict[str, Any]
    """Other fields that were changed."""

    def __bool__(self) -> bool:
        return bool(self.tables or self.fields)


class BaseDatabase:
    """A frozen database. Thread-safe."""

    def __init__(self, database: BaseModel) -> None:
        """Take over the database, which is frozen from now on.

        Raises:
            TypeError: it cannot be shared, or its hash differs when it is assembled from its records.
        """
        dumped = database.model_dump()
        whole = _json(dumped)
        self._shared = overlay.freeze(database)
        self._whole: dict[str, bytes] = {}
        """JSON of each field."""
        self._records: dict[str, dict[str, bytes]] = {}
        """JSON of each record of the fields that are tables, in the order of the keys."""
        for name, value in dumped.items():
            self._whole[name] = _json(value)
            if isinstance(value, dict) and value and all(type(key) is str for key in value):
                self._records[name] = {key: _entry(key, value[key]) for key in sorted(value)}
        self._digest = hashlib.sha256(whole).hexdigest()
        tables = {name: self._table(name, {}, Changes({name: {}}, {})) for name in self._records}
        if self._assemble(tables) != self._digest:
            raise TypeError("the JSON of its records does not make up the JSON of the whole")

    def overlay(self) -> Any:
        """A private database for one episode."""
        return overlay.overlay(self._shared)

    def changes(self, database: BaseModel) -> Changes | None:
        """What was changed in an overlay of this base. None: `database` is not an overlay of it."""
        shared = self._shared.__dict__
        if type(database) is not type(self._shared).__base__:
            return None
        tables: dict[str, dict[str, Any]] = {}
        fields: dict[str, Any] = {}
        for name, value in database.__dict__.items():
            if isinstance(value, overlay.OverlayDict) and value.shared is shared[name] and name in self._records:
                keys = value.changed()
                if not all(type(key) is str for key in keys):
                    return None
                if keys:
                    tables[name] = {key: dict.get(value, key, _REMOVED) for key in keys}
            elif not overlay.is_unchanged(value, shared[name]):
                fields[name] = value
        return Changes(tables, fields)

    def digest(self, database: BaseModel, changes: Changes) -> str:
        """τ²'s hash of the overlay with these changes, in hexadecimal."""
        if not changes:
            return self._digest
        draft = copy.copy(database)  # pydantic dumps only what changed
        for name, records in changes.tables.items():
            draft.__dict__[name] = {key: record for key, record in records.items() if record is not _REMOVED}
        dumped = draft.model_dump(include={*changes.tables, *changes.fields})
        fields = {name: _json(dumped[name]) for name in changes.fields}
        tables = {name: self._table(name, dumped[name], changes) for name in changes.tables}
        return self._assemble(fields | tables)

    def _table(self, name: str, dumped: Mapping[str, Any], changes: Changes) -> bytes:
        records = self._records[name] | {key: _entry(key, value) for key, value in dumped.items()}
        for key, record in changes.tables[name].items():
            if record is _REMOVED:
                records.pop(key, None)
        if not dumped.keys() <= self._records[name].keys():
            records = {key: records[key] for key in sorted(records)}
        return b"{" + b", ".join(records.values()) + b"}"

    def _assemble(self, fields: dict[str, bytes]) -> str:
        """The hash of the database, with these fields replaced by the given JSON."""
        texts = self._whole | fields
        return hashlib.sha256(b"{" + b", ".join(_entry(name, texts[name]) for name in sorted(texts)) + b"}").hexdigest()


def _entry(key: str, value: Any) -> bytes:
    return json.dumps(key).encode() + b": " + (value if isinstance(value, bytes) else _json(value))


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()  # as in τ²'s get_dict_hash
