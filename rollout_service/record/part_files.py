"""PartFiles: the files into which one process writes its finished trajectories, several to a file.

Invariant: a part that was returned is on the disk, and so is its file's name. A file is only appended to, never after
an error or after `OPEN_SECONDS`, and holds `PARTS_OF_A_FILE` parts at most. Parts that end while the disk is busy share
one sync, which is most of what a part costs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from rollout_service.record.part import Part, encoded
from rollout_service.record.trajectory import Trajectory

PARTS_OF_A_FILE = 32
"""A file goes when nobody needs any of its parts. With more, more disk space waits for the slowest of them."""

OPEN_SECONDS = 600.0
"""Age at which a file is not added to any more, so that whoever wrote it may be gone: it still is removed in time."""


@dataclass(slots=True)
class _Waiting:
    """A content that is to be written."""

    content: bytes
    part: Part | None = None
    error: OSError | None = None


class PartFiles:
    """Writes parts into files of one folder. Thread-safe."""

    def __init__(self, folder: Path, node: str) -> None:
        """
        Args:
            node: id of the Ray node on whose disk the folder lies.
        """
        self._folder = folder
        self._node = node
        self._waiting: deque[_Waiting] = deque()
        """Contents that no thread writes yet. Any thread adds to it; the one that has the turn takes from it."""
        self._turn = threading.Lock()
        self._file: int | None = None
        """Descriptor of the file that is written."""
        self._name = ""
        self._size = 0
        self._count = 0
        self._opened = 0.0

    def write(self, trajectory: Trajectory) -> Part:
        """Store the trajectory. Returns when it is safe.

        Raises:
            OSError: the disk is full or fails. The next call begins another file.
        """
        own = _Waiting(encoded(trajectory))
        self._waiting.append(own)
        with self._turn:
            if own.part is None and own.error is None:  # else another thread wrote it while this one waited
                self._write_waiting()
        if own.error is not None:
            raise own.error
        assert own.part is not None
        return own.part

    def begin_another(self) -> None:
        """Write nothing more into the current file."""
        with self._turn:
            self._close()

    def _write_waiting(self) -> None:
        """Write everything that waits."""
        everything = []
        while self._waiting:
            everything.append(self._waiting.popleft())
        while everything:
            try:
                room = PARTS_OF_A_FILE - self._count
                some, everything = everything[:room], everything[room:]
                parts = self._append([waiting.content for waiting in some])
            except OSError as error:
                self._abandon()
                for waiting in (*some, *everything):
                    waiting.error = error
                return
            for waiting, part in zip(some, parts, strict=True):
                waiting.part = part
            if self._count == PARTS_OF_A_FILE:
                self._close()

    def _append(self, contents: list[bytes]) -> list[Part]:
        if self._file is not None and (time.monotonic() >= self._opened + OPEN_SECONDS or self._was_removed()):
            self._close()
        if self._file is None:
            self._open()
        assert self._file is not None
        parts, offset = [], self._size
        for content in contents:
            digest = hashlib.sha256(content).hexdigest()
            parts.append(Part(self._name, digest, self._node, offset, len(content), PARTS_OF_A_FILE))
            offset += len(content)
        left = memoryview(contents[0] if len(contents) == 1 else b"".join(contents))
        while left:
            left = left[os.write(self._file, left) :]
        os.fdatasync(self._file)
        self._size, self._count = offset, self._count + len(parts)
        return parts

    def _open(self) -> None:
        """Begin a file, whose name is on the disk when this returns."""
        self._opened = time.monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)  # on another node than the coordinator's, nobody else made it
        self._name = f"{uuid.uuid4().hex}.parts"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file, self._size, self._count = os.open(self._folder / self._name, flags, 0o666), 0, 0
        sync_folder(self._folder)

    def _was_removed(self) -> bool:
        """Whether somebody removed the file: what is added to it could not be read."""
        return self._file is not None and os.fstat(self._file).st_nlink == 0

    def _abandon(self) -> None:
        """Write no more into the file: nobody knows what an error left at its end. Remove it if it holds no part."""
        if self._file is not None and not self._count:
            with contextlib.suppress(OSError):
                (self._folder / self._name).unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # everything in it was synced
                os.close(self._file)
        self._file, self._count = None, 0


def sync_folder(folder: Path) -> None:
    """Sync the directory itself, so that new names in it survive a power loss."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a mounted bucket has no directories to sync
            raise
    finally:
        os.close(opened)
