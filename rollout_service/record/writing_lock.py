"""WritingLock: one process at a time goes on with a file of trajectories.

Invariant: a process that dies gives it up, in whatever way it dies. The lock is a hidden file beside the trajectories,
which goes with the process that holds it, or is taken over by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rollout_service.errors import StorageError


@contextmanager
def writing_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the trajectories at `path`. Where their folder is not made yet, or its file system has no locks,
    nothing is held.

    Raises:
        StorageError: another process holds it.
    """
    lock = path.parent / f".lock-{path.name}"
    held = _held(path, lock) if path.parent.is_dir() else None
    try:
        yield
    finally:
        if held is not None:
            with contextlib.suppress(OSError):  # while it is held, so that nobody waits for a file that has no name
                lock.unlink()
            os.close(held)


def check_not_written(path: Path) -> None:
    """Check that no process holds the lock of the trajectories at `path`, without holding it.

    Raises:
        StorageError: one does.
    """
    try:
        lock = os.open(path.parent / f".lock-{path.name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody holds it; whoever reads the file itself says what is wrong with it
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(f"A process still writes to {path}.", "Wait for its end, or end it.") from None
    except OSError:  # its file system has no locks
        return
    finally:
        os.close(lock)


def _held(path: Path, lock: Path) -> int | None:
    while True:
        try:
            held = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError:  # whoever opens the file itself says why
            return None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise StorageError(
                f"Another process writes to {path}.", "Wait for its end, or end it, or choose another file."
            ) from None
        except OSError:
            os.close(held)
            return None
        if _has_name(held, lock):
            return held
        os.close(held)  # it was removed after it was opened here


def _has_name(held: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), lock.stat())
    except FileNotFoundError:
        return False
