"""The place of an exported file or folder.

Invariant: under its name it is whole or not there. An existing one is replaced only when that was asked for, and only
once the new one is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rollout_service.errors import StorageError
from rollout_service.record.replacement import Replacement
from rollout_service.record.storage import check_place, finish_replacement


@contextmanager
def new_at(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give the path beside `path` under which the new file or folder is made. It gets its name at the end of the block,
    and is removed if the block raises.

    Raises:
        StorageError: `path` exists and `overwrite` is false, or it cannot be written.
    """
    finish_replacement(path)
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists already.", "Choose another --output, or give --overwrite.")
    check_place(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Replacement(path)
        try:
            yield new.beside
            if path.exists():
                new.take_place()
            else:
                os.rename(new.beside, path)
        finally:
            new.discard()
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}.", "Make room, or choose another path.") from error
