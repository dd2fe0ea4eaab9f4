"""The journal's rows of samplers: how far each has drawn, and what it has learned.

Invariant: what is noted twice is as if it were noted once. What a sampler learned is one JSON object, into which news
are merged as by RFC 7396 (JSON Merge Patch).
"""

from __future__ import annotations

import json
import sqlite3

from rollout_service.collecting.drawing import SamplerPosition, own

TABLES = """
CREATE TABLE IF NOT EXISTS samplers (selection TEXT PRIMARY KEY, seed INTEGER, drawn INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS learned (selection TEXT PRIMARY KEY, state TEXT) WITHOUT ROWID;
"""


def note(connection: sqlite3.Connection, position: SamplerPosition, *, replaces: bool = False) -> None:
    """Note how far a sampler is.

    Args:
        replaces: whether what it had learned before is forgotten.
    """
    row = (position.selection, position.seed, position.drawn)
    connection.execute("INSERT OR REPLACE INTO samplers VALUES (?, ?, ?)", row)
    if replaces:
        connection.execute("DELETE FROM learned WHERE selection = ?", (position.selection,))
    if position.learned is not None:
        connection.execute(
            "INSERT INTO learned VALUES (?, ?) ON CONFLICT DO UPDATE SET state = json_patch(state, excluded.state)",
            (position.selection, json.dumps(position.learned)),
        )


def found(connection: sqlite3.Connection) -> list[SamplerPosition]:
    """How far each sampler is, with all that it learned."""
    rows = connection.execute("SELECT selection, seed, drawn, state FROM samplers LEFT JOIN learned USING (selection)")
    return [
        SamplerPosition(selection, seed, drawn, None if state is None else json.loads(state))
        for selection, seed, drawn, state in rows
    ]


def forget(connection: sqlite3.Connection, collection_id: str) -> None:
    """Forget the collection's own sampler, if it has one."""
    for table in ("samplers", "learned"):
        connection.execute(f"DELETE FROM {table} WHERE selection = ?", (own(collection_id),))
