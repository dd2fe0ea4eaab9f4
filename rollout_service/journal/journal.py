"""Journal: the open journal of a service, and the one thread that writes it.

Invariant: entries reach the disk in the order in which they were recorded, and an event loop never waits for the disk.
What gathers while the disk is busy, or for a moment while nobody waits, is one transaction. While the disk is full or
fails, entries wait and are tried again: nothing is lost as long as the process lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import rollout_service.logs as logs
from rollout_service.errors import ServiceError
from rollout_service.journal.database import Database, Overtaken, Recovered
from rollout_service.journal.entries import Entry
from rollout_service.journal.files import Files
from rollout_service.journal.log import Log
from rollout_service.journal.place import FILES, PARTS, Form, check_file_system, check_form, own
from rollout_service.record.part import Part, discard_files

_log = logs.logger(__name__)

_GATHER_SECONDS = 0.2
"""How long entries may gather that nobody waits for: longer than finished groups wait for each other, see
`actors.delivery`, so that all is one transaction, which costs as much as a dozen entries. If the process dies, what
ended in this time is played again."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds until a transaction that failed is tried again; the time doubles."""

ENDING = ServiceError("The service is ending.", "Start it again.")
"""What was not safe before a service ends never will be."""


class NoJournal:
    """Stands for the journal of a service that has none."""

    problem: str | None = None
    recovered = Recovered()

    def record(self, entry: Entry) -> int:
        """Forget the entry."""
        return 0

    async def durable(self, position: int | None = None) -> None:
        """Return at once."""

    def close(self) -> None:
        """Do nothing."""


class Journal:
    """A service's journal, owned by this process. Use it on one event loop; `record` may be called from anywhere."""

    def __init__(
        self,
        folder: Path,
        service: str,
        *,
        form: Form = "sqlite",
        seconds: float = 0.0,
        discarded: Callable[[list[Part]], None] | None = None,
    ) -> None:
        """Open the journal in `folder`, or make it. Blocks for the disk, and while another process owns the journal.

        Args:
            service: the service's name, for others that want the journal.
            form: as in `service.journal_form`.
            seconds: how long to wait for an owner that is about to end.
            discarded: called by the writing thread with one part of each file that nobody needs any more, of any node.
                Those of this machine are removed already.

        Raises:
            ServiceError: the folder is on a network file system and the form is a database, its journal has the other
                form, another service owns it, a newer release wrote it, or the disk cannot be used.
        """
        self.folder = folder
        self.problem: str | None = None
        """Why nothing can be written at present; None: all is well."""
        self._parts, self._discarded = folder / PARTS, discarded
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            if form == "sqlite":
                check_file_system(folder)
            check_form(folder, form)
            self._lock: IO[str] = own(folder, service, seconds, must_lock=form == "sqlite")
            self._database = Database(folder / FILES[form]) if form == "sqlite" else Log(folder / FILES[form])
            self.recovered: Recovered = self._database.recover()
            """What the journal held when it was opened."""
            self.is_new = self._database.owner == 1
            """Whether there was no journal in the folder."""
            self._files = self._sweep()
        except Overtaken as error:
            raise self._final(error) from error
        except (OSError, sqlite3.Error) as error:
            raise ServiceError(
                f"service.journal: {folder} cannot be used: {error}.", "Choose a folder on a disk with room."
            ) from error
        self._failure: ServiceError | None = None
        self._entries: list[Entry] = []
        self._recorded = self._safe = 0
        """Numbers of entries that were recorded, and of those that reached the disk, so far."""
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def record(self, entry: Entry) -> int:
        """Write the entry soon. Returns its position at once."""
        with self._changed:
            self._entries.append(entry)
            self._recorded += 1
            if len(self._entries) == 1:  # else the thread knows already, and gathers
                self._changed.notify()
            return self._recorded

    async def durable(self, position: int | None = None) -> None:
        """Wait until the entry at this position and all before it are safe, however long the disk takes.

        Args:
            position: as `record` returned it; None: that of the last entry.

        Raises:
            ServiceError: it never will be: another service took the journal over, the database is damaged, or the
                service ends.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._changed:
            if self._closing:
                raise ENDING
            if position is not None and position <= self._safe and self._failure is None:
                return
            self._waiting.append((loop, done))
            self._changed.notify()
        await done
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Write what was recorded, if the disk takes it, and give the journal up. Blocks for the disk."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        with contextlib.suppress(sqlite3.Error, OSError, Overtaken):  # the next owner sweeps as well
            self._sweep()
        self._database.close()
        self._lock.close()

    # The writing thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._waiting or self._closing)
                self._changed.wait_for(lambda: self._waiting or self._closing, _GATHER_SECONDS)
                entries, self._entries = self._entries, []
                waiting, self._waiting = self._waiting, []
                is_last = self._closing
            if entries and self._failure is None:
                self._write(entries)
            for loop, done in waiting:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_settle, done)
            if is_last:
                return

    def _write(self, entries: list[Entry]) -> None:
        """Commit the entries, however often that must be tried. Sets `_failure` if it is no use."""
        pause, begun = _FIRST_PAUSE, time.monotonic()
        while True:
            try:
                parts = self._database.commit(entries)
            except (sqlite3.OperationalError, OSError) as error:
                self.problem = f"the journal {self.folder} cannot be written: {error}"
                _log.warning("%s. It is tried again; make room or repair the disk.", self.problem)
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, pause):
                        _log.error("The service ends, and %d entries of its journal are lost.", len(entries))
                        self._failure = ENDING
                        return
                pause = min(2 * pause, _LONGEST_PAUSE)
            except Exception as error:  # this thread must not die unseen: everybody would wait for ever
                self._failure = self._final(error)
                self.problem = str(self._failure)
                _log.error("%s", self._failure, exc_info=error)
                return
            else:
                self.problem = None
                self._safe += len(entries)
                self._discard(entries, parts, begun)
                return

    def _final(self, error: Exception) -> ServiceError:
        if isinstance(error, Overtaken):
            return ServiceError(
                f"Another service took over the journal {self.folder}.",
                "Use that service. Two services must not have the same service.journal.",
            )
        return ServiceError(f"The journal {self.folder} is damaged: {error}.", "Start the service with another one.")

    def _discard(self, entries: list[Entry], parts: list[Part], begun: float) -> None:
        """Remove each file that nobody needs now that the entries are recorded and the parts given up.

        Args:
            begun: when that began. Entries about further parts may have waited since then, however long it took.
        """
        files = self._files.recorded(entries, parts, begun)
        if files:
            discard_files(self._parts, files)
            try:
                if self._discarded is not None:
                    self._discarded(files)
            except Exception:  # what is left lying takes room, and nothing else
                _log.exception("Parts on other nodes were not removed.")

    def _sweep(self) -> Files:
        """Remove the files that no episode needs, such as those of processes that died. Nobody writes them any more.

        Returns:
            The others.

        Raises:
            Overtaken: another service owns the journal. Nothing was removed.
        """
        found = list(self._parts.iterdir())  # before the check: what a later owner's actors write is not among them
        needed = self._database.parts()
        names = {part.name for part in needed}
        self._database.commit([])  # checks who the owner is
        for path in found:
            if path.name not in names:
                path.unlink(missing_ok=True)
        return Files(needed)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
