"""Replacement: a new file beside an old one, whose place it takes later.

Invariant: until then the old file is as it was, and so is its manifest. A process that is killed leaves the old file or
the new one under the name, never half of one. A folder alone, killed between two renamings, may leave none: the next
writer gives the new one its place, see `settle`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from rollout_service.record.manifest import manifest_path


def settle(path: Path) -> None:
    """Finish what a process began that was killed while it gave a new folder the place of an old one. Else it does
    nothing. Only for whoever is about to write.

    Raises:
        OSError: the file system fails.
    """
    old, new = _old(path), _new(path)
    if not old.exists():
        return
    if not path.exists():
        os.rename(new if new.exists() else old, path)
    _remove(old)


class Replacement:
    """Stands for one path until the new file is in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.beside = _new(path)
        """Where the new file is written. Readers of folders pass over names with a leading dot."""
        self.discard()  # what a process left that was killed

    def take_place(self) -> None:
        """Give the new file, and its manifest, the name of the old one, which is removed.

        Raises:
            OSError: the file system fails.
        """
        if self.beside.is_dir() or self.path.is_dir():  # no system call puts a folder in the place of another
            old = _old(self.path)
            _remove(old)
            os.rename(self.path, old)
            os.rename(self.beside, self.path)
            _remove(old)
        else:
            os.replace(self.beside, self.path)
        with contextlib.suppress(FileNotFoundError):  # that of a folder is inside it
            os.replace(manifest_path(self.beside), manifest_path(self.path))

    def discard(self) -> None:
        """Remove the new file."""
        _remove(self.beside)
        manifest_path(self.beside).unlink(missing_ok=True)


def _old(path: Path) -> Path:
    return path.with_name(f".old-{path.name}")


def _new(path: Path) -> Path:
    return path.with_name(f".new-{path.name}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
