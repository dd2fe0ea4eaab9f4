"""BaseDatabase: one parsed τ² database, shared by all episodes of a process, and the hash of an episode's version.

Invariant: `digest` is exactly τ²'s own hash of the same contents (`get_dict_hash` of `model_dump()`: SHA-256 of the
sorted JSON). It is assembled from the JSON of the records, and only records that an episode changed are serialized
again. Pydantic and `json` would serialize the whole database, which takes 40 to 300 ms under the interpreter's lock.
"""

from __future__ import annotations

import bisect
import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from rollout_service.tau2 import overlay

_REMOVED = object()

_BLOCK = 32
"""Records between two places from which a hash can go on."""


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
        self._before: dict[str, Any] = {}
        """SHA-256 of what stands before each field."""
        self._within: dict[str, list[Any]] = {}
        """SHA-256 up to the start of each block of a table's records."""
        self._digest = self._hash_all().hexdigest()
        if self._digest != hashlib.sha256(whole).hexdigest():
            raise TypeError("the JSON of its records does not make up the JSON of the whole")

    def _hash_all(self) -> Any:
        """SHA-256 of the database, made of its records. Notes what `_before` and `_within` hold."""
        sha = hashlib.sha256(b"{")
        for place, name in enumerate(sorted(self._whole)):
            sha.update(_next_key(name, place > 0))
            self._before[name] = sha.copy()
            if name not in self._records:
                sha.update(self._whole[name])
                continue
            sha.update(b"{")
            self._within[name] = [sha.copy()]
            for number, record in enumerate(self._records[name].values(), 1):
                sha.update(b", " + record if number > 1 else record)
                if not number % _BLOCK:
                    self._within[name].append(sha.copy())
            sha.update(b"}")
        sha.update(b"}")
        return sha

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
        first = min(dumped)
        sha = self._before[first].copy()
        for name in sorted(name for name in self._whole if name >= first):
            if name != first:
                sha.update(_next_key(name))
            if name not in dumped:
                sha.update(self._whole[name])
            elif name in changes.fields:
                sha.update(_json(dumped[name]))
            else:
                entries = self._changed_records(name, dumped[name], changes)
                unchanged = 0
                if name == first:  # all before the first change is hashed already
                    unchanged = bisect.bisect_left(list(self._records[name]), min(changes.tables[name])) // _BLOCK
                    sha = self._within[name][unchanged].copy()
                else:
                    sha.update(b"{")
                rest = entries[unchanged * _BLOCK :]
                sha.update(b", " if unchanged and rest else b"")
                sha.update(b", ".join(rest) + b"}")
        sha.update(b"}")
        return str(sha.hexdigest())

    def _changed_records(self, name: str, dumped: Mapping[str, Any], changes: Changes) -> list[bytes]:
        """JSON of the table's records, in the order of the keys."""
        records = self._records[name] | {key: _entry(key, value) for key, value in dumped.items()}
        for key, record in changes.tables[name].items():
            if record is _REMOVED:
                records.pop(key, None)
        if not dumped.keys() <= self._records[name].keys():
            return [records[key] for key in sorted(records)]
        return list(records.values())


def _next_key(name: str, comma: bool = True) -> bytes:
    return (b", " if comma else b"") + json.dumps(name).encode() + b": "


def _entry(key: str, value: Any) -> bytes:
    return json.dumps(key).encode() + b": " + _json(value)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()  # as in τ²'s get_dict_hash
