"""Removal: takes the aborted episodes of a collection out of a file, so that they can be played again.

Invariant: every other trajectory stays as it was written, and a process that is killed leaves the file with them or
without them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from rollout_service.record.jsonl import whole_lines
from rollout_service.record.parquet import remove_rows
from rollout_service.record.replacement import Replacement
from rollout_service.record.trajectory import Outcome


def remove_aborted(path: Path, collection_id: str) -> None:
    """Remove them from the file at `path`, whose end is dropped if it breaks off.

    Raises:
        OSError: the file system fails.
    """
    if path.suffix == ".parquet":
        remove_rows(path, collection_id=collection_id, outcome=str(Outcome.ABORTED))
        return
    replacement = Replacement(path)
    with path.open("rb") as lines, replacement.beside.open("wb") as kept:
        for line in whole_lines(lines):
            record = json.loads(line)
            if (record["collection_id"], record["outcome"]) != (collection_id, Outcome.ABORTED):
                kept.write(line)
        kept.flush()
        os.fsync(kept.fileno())
    replacement.take_place()
