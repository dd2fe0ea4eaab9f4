"""The journal: what was committed survives power loss, full disks and two owners; bad input is refused."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import rollout_service.journal.database as database_module
import rollout_service.journal.journal as journal_module
import rollout_service.journal.log as log_module
import rollout_service.journal.place as place
from rollout_service.collecting.collection import ENDLESS
from rollout_service.collecting.drawing import SamplerPosition, own
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest
from rollout_service.collecting.spending import Spending
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config.budget import Budget
from rollout_service.config.sampling import Sampling
from rollout_service.errors import Fault, FaultKind, ServiceError
from rollout_service.journal.database import Database, OpenCollection, Overtaken, Recovered
from rollout_service.journal.entries import (
    SERVICE,
    Acknowledged,
    Asked,
    Delivered,
    Drawn,
    Dropped,
    Ended,
    Entry,
    Positioned,
    Reopened,
    Served,
    Spent,
    Stored,
)
from rollout_service.journal.journal import Journal
from rollout_service.journal.log import Log
from rollout_service.journal.place import FILES, PARTS, check_file_system
from rollout_service.record.part import Part, is_there
from rollout_service.record.part_files import OPEN_SECONDS, PARTS_OF_A_FILE, PartFiles
from rollout_service.record.trajectory import Outcome, TaskRef
from tests.journal import takeovers
from tests.support.trajectories import make_trajectory

SAMPLING = Sampling(temperature=0.5)


def asked(collection_id: str = "c", groups: int = 2) -> Asked:
    request = CollectionRequest(n=2 * groups, group_size=2, domain={"mock": 1.0}, sampling=SAMPLING)
    task = TaskRef("mock", "base", "1", 0)
    episodes = [
        EpisodeRequest(f"{collection_id}-{i}", collection_id, f"{i // 2}", i % 2, task, i, sampling=SAMPLING)
        for i in range(2 * groups)
    ]
    return Asked(collection_id, "client", request, episodes, (), 3, SamplerPosition("mock", 1, 5), groups=groups)


def stored(episode: int, part: Part | None = None, attempt: int = 1) -> Stored:
    fault = None if part else Fault(FaultKind.SERVICE, "OSError", "it broke", True, "its stack")
    summary = EpisodeSummary(f"c-{episode}", Outcome.COMPLETED, "user_stop", 1.0, fault, (1, 2), 10, 5, part=part)
    return Stored("c", episode, attempt, summary)


def a_part(number: int) -> Part:
    return Part(f"{number}.part", f"digest {number}", "node")


@pytest.fixture
def fast_folder(tmp_path) -> Iterator[Path]:
    """A folder in memory where there is one: a sync costs nothing there."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    yield folder
    shutil.rmtree(folder)


FORMS = ["sqlite", "log"]


def opened(form: str, folder: Path) -> Database | Log:
    return Database(folder / FILES["sqlite"]) if form == "sqlite" else Log(folder / FILES["log"])


@pytest.fixture(params=FORMS)
def database(request, fast_folder) -> Iterator[Database | Log]:
    """An open journal of each form. What a log holds at the end, it holds when it is opened again, which makes it a
    snapshot, and once more."""
    if request.param == "sqlite":
        yield Database(":memory:")
        return
    yield (log := Log(fast_folder / "log"))
    found = log.recover()
    for _ in range(2):
        log.close()
        log = Log(fast_folder / "log")
        assert log.recover() == found


def test_what_was_committed_is_recovered_equal(database):
    entries = [asked(), stored(0, a_part(0)), stored(1), stored(2, a_part(2)), Delivered("c", 0, (1,))]
    assert database.commit(entries) == []
    found = database.recover()
    assert found.samplers == [SamplerPosition("mock", 1, 5)]
    expected = {0: stored(0, a_part(0)), 1: stored(1), 2: stored(2, a_part(2))}
    assert found.collections == [OpenCollection(replace(asked(), sampler=None), expected, {0: (1,)}, [])]


def test_what_samplers_learned_is_merged_replaced_and_forgotten_with_a_collection_whose_own_it_was(database):
    def learned(tasks: dict[str, list[float]], selection: str = "mock") -> SamplerPosition:
        return SamplerPosition(selection, 1, 5, {"tasks": tasks})

    database.commit([Positioned(learned({"a": [1, 2], "b": [0, 1]})), Positioned(learned({"a": [2, 2]}))])
    database.commit([asked(), Positioned(learned({"c": [1, 1]}, own("c"))), Positioned(SamplerPosition("mock", 1, 6))])
    both = [learned({"c": [1, 1]}, own("c")), replace(learned({"a": [2, 2], "b": [0, 1]}), drawn=5)]
    assert sorted(database.recover().samplers, key=str) == sorted([both[0], replace(both[1], drawn=6)], key=str)
    database.commit([Positioned(learned({"b": [9, 9]}), replaces=True), Ended("c")])
    assert database.recover().samplers == [learned({"b": [9, 9]})]


def test_groups_that_were_drawn_later_follow_those_of_the_plan(database):
    whole, one = asked(groups=3), replace(asked(groups=1), groups=ENDLESS)
    later = [
        Drawn("c", group, whole.episodes[2 * group : 2 * group + 2], SamplerPosition("mock", 1, 6 + group))
        for group in (1, 2)
    ]
    for _ in range(2):  # once more changes nothing
        database.commit([one, *later, Delivered("c", 0), Acknowledged("c", (0,))])
    [found] = database.recover().collections
    assert found.asked == replace(one, episodes=whole.episodes, sampler=None)
    assert database.recover().samplers == [SamplerPosition("mock", 1, 8)]
    database.commit([Ended("c"), later[0], asked(groups=1)])
    assert database.recover().collections[0].asked == replace(asked(groups=1), sampler=None)


def test_a_dropped_group_needs_no_episodes_and_is_none_of_those_that_are_acknowledged(database):
    it = replace(asked(groups=3), groups=2)
    database.commit([it, *(stored(episode, a_part(episode)) for episode in range(6)), Delivered("c", 1)])
    for group in (0, 1):  # the second one was delivered
        assert database.commit([Dropped("c", group)]) == [a_part(2 * group), a_part(2 * group + 1)]
        assert database.commit([Dropped("c", group)]) == [], "once more changes nothing"
    [found] = database.recover().collections
    assert (found.acknowledged, found.dropped, sorted(found.stored)) == ([0, 1], [0, 1], [4, 5])
    database.commit([Acknowledged("c", (1,)), Delivered("c", 2), Acknowledged("c", (2,))])
    assert [each.acknowledged for each in database.recover().collections] == [[0, 1, 2]], "one is still to come"
    database.commit([Delivered("c", 3), Acknowledged("c", (3,))])
    assert database.recover().collections == []


def test_the_version_of_the_weights_that_came_last_is_known(database):
    assert database.recover().version is None
    database.commit([Served(7)])
    database.commit([Served(8), asked()])
    assert database.recover().version == 8


def test_what_was_spent_is_known_as_long_as_its_collection_is_open(database):
    budget = Budget(usd=5.0, episodes=9)
    of_service, of_collection = (
        Spent(name, Spending(budget, usd, 3, 4, 5, is_priced=False), 6.0) for name, usd in ((SERVICE, 0.5), ("c", 0.25))
    )
    for _ in range(2):
        database.commit([asked(), of_service, of_collection])
        found = database.recover()
        assert (found.spent, found.collections[0].spent) == (of_service, of_collection)
    database.commit([Ended("c"), of_collection, asked()])
    assert database.recover().collections[0].spent is None


def test_a_submission_is_known_until_its_collection_ends(database):
    entry = replace(asked(), submission="asked once")
    for _ in range(2):
        database.commit([entry])
        assert [found.asked for found in database.recover().collections] == [replace(entry, sampler=None)]
    database.commit([Ended("c"), asked()])
    assert [found.asked.submission for found in database.recover().collections] == [None]


def test_a_collection_belongs_to_the_client_that_opened_it_last(database):
    database.commit([asked(), Reopened("c", "another"), Reopened("unknown", "another")])
    assert [found.asked.client for found in database.recover().collections] == ["another"]


def test_a_journal_of_an_earlier_release_is_read(tmp_path):
    older = Database(tmp_path / "journal.sqlite")
    older.commit([asked(), stored(0, a_part(0))])
    older._execute("DROP TABLE submissions")
    gone = ", ".join(f"'$.part.{name}'" for name in ("offset", "size", "of"))
    older._execute(f"UPDATE episodes SET summary = json_remove(summary, {gone})")
    older._execute("PRAGMA user_version=1")
    older.close()
    [found] = Database(tmp_path / "journal.sqlite").recover().collections
    assert (found.asked, found.stored) == (replace(asked(), sampler=None), {0: stored(0, a_part(0))})


def test_a_journal_that_counted_its_groups_down_is_read_and_its_collection_ends_with_its_last_group(tmp_path):
    older = Database(tmp_path / "journal.sqlite")
    older.commit([asked(groups=3), *(Delivered("c", number) for number in range(3)), Acknowledged("c", (0,))])
    older._execute("UPDATE collections SET left = 2")
    older._execute("PRAGMA user_version=2")
    older.close()
    for number in (1, 2):
        database = Database(tmp_path / "journal.sqlite")
        assert [found.acknowledged for found in database.recover().collections] == [list(range(number))]
        database.commit([Acknowledged("c", (number,))])
        database.close()
    assert Database(tmp_path / "journal.sqlite").recover().collections == []


def test_an_acknowledgement_that_could_not_be_written_counts_once(database, monkeypatch):
    database.commit([asked(), Delivered("c", 0), Delivered("c", 1)])
    with monkeypatch.context() as patched:
        state = database if isinstance(database, Database) else database._state
        patched.setattr(state, "_position", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            state.commit([Acknowledged("c", (0,)), Positioned(SamplerPosition("mock", 1, 5))])
    database.commit([Acknowledged("c", (0,))])
    assert [found.acknowledged for found in database.recover().collections] == [[0]]
    database.commit([Acknowledged("c", (1,))])
    assert database.recover().collections == []


def test_parts_are_given_up_when_they_are_acknowledged_replaced_or_of_a_collection_that_ended(database):
    database.commit([asked(groups=3), *(stored(i, a_part(i)) for i in range(6))])
    assert database.commit([stored(2, a_part(9), attempt=2)]) == [a_part(2)]
    assert database.commit([Acknowledged("c", (0,))]) == [], "it was never delivered"
    assert database.commit([Delivered("c", 0), Acknowledged("c", (0, 0))]) == [a_part(0), a_part(1)]
    assert database.commit([Delivered("c", 0), Acknowledged("c", (0,))]) == []
    assert database.recover().collections[0].acknowledged == [0]
    assert database.commit([Ended("c")]) == [a_part(9), a_part(3), a_part(4), a_part(5)]
    assert database.commit([stored(3, a_part(3)), Delivered("c", 1), Ended("c")]) == [a_part(3)]
    assert database.recover().collections == []


def test_a_collection_whose_last_group_is_acknowledged_is_over(database):
    entries = [asked(), *(stored(i) for i in range(4)), Delivered("c", 1), Delivered("c", 0), Acknowledged("c", (1,))]
    database.commit(entries)
    assert database.recover().collections[0].delivered == {0: ()}
    database.commit([Acknowledged("c", (0,))])
    assert database.recover().collections == []


TRANSACTIONS: list[list[Entry]] = [
    [asked(), *(stored(i, a_part(i)) for i in range(3)), Delivered("c", 0)],
    [stored(3, a_part(3))],
    [Acknowledged("c", (0,))],
]


def test_a_database_whose_log_is_cut_at_any_byte_of_the_last_two_transactions_loses_nothing_older(
    fast_folder, monkeypatch
):
    monkeypatch.setattr(database_module, "_PAGE_BYTES", 512)  # a shorter log has fewer bytes to be cut at
    whole = fast_folder / "whole"
    database = Database(whole)
    log = fast_folder / "whole-wal"
    states: list[Recovered] = []
    sizes: list[int] = []
    for entries in TRANSACTIONS:
        database.commit(entries)
        states.append(database.recover())
        sizes.append(log.stat().st_size)
    base, written = whole.read_bytes(), log.read_bytes()
    assert sizes[2] == len(written), "a part of the log is older than its last checkpoint"
    cut = fast_folder / "cut"
    found = []
    for size in range(sizes[0], sizes[2] + 1):
        cut.write_bytes(base)
        cut.with_name("cut-wal").write_bytes(written[:size])
        after = Database(cut)
        found.append(states.index(after.recover()))
        after.close()
    assert found == [0] * (sizes[1] - sizes[0]) + [1] * (sizes[2] - sizes[1]) + [2]


def test_a_log_cut_at_any_byte_of_the_last_two_transactions_loses_nothing_older(fast_folder):
    log = Log(fast_folder / "log")
    states: list[Recovered] = []
    sizes: list[int] = []
    for entries in TRANSACTIONS:
        log.commit(entries)
        states.append(log.recover())
        segment = max((fast_folder / "log").glob("*.log"))
        sizes.append(segment.stat().st_size)
    log.close()
    written, found = segment.read_bytes(), []
    for size in range(sizes[0], sizes[2] + 1):
        cut = fast_folder / "cut"
        shutil.copytree(fast_folder / "log", cut)
        (cut / segment.name).write_bytes(written[:size])
        after = Log(cut)
        found.append(states.index(after.recover()))
        after.close()
        shutil.rmtree(cut)
    # A transaction is whole with the end of its line.
    assert found == [0] * (sizes[1] - sizes[0]) + [1] * (sizes[2] - sizes[1]) + [2]


def test_a_log_that_is_damaged_before_its_end_is_refused_and_kept(fast_folder):
    log = Log(fast_folder / "log")
    for entries in TRANSACTIONS:
        log.commit(entries)
    log.close()
    segment = max((fast_folder / "log").glob("*.log"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    names = sorted((fast_folder / "log").iterdir())
    with pytest.raises(ServiceError, match="is damaged in line 2"):
        Log(fast_folder / "log")
    assert sorted((fast_folder / "log").iterdir()) == names


def test_what_is_written_while_another_owner_takes_the_log_over_does_not_count(fast_folder, monkeypatch):
    first = Log(fast_folder / "log")
    first.commit(TRANSACTIONS[0])
    write = log_module._write
    second: list[Log] = []

    def late(file: int, content: bytes) -> None:  # the other one takes over and reads before the line is written
        monkeypatch.undo()
        second.append(Log(fast_folder / "log"))
        write(file, content)

    monkeypatch.setattr(log_module, "_write", late)
    with pytest.raises(Overtaken):
        first.commit(TRANSACTIONS[1])
    with pytest.raises(Overtaken):
        first.commit(TRANSACTIONS[1])
    second[0].commit(TRANSACTIONS[2])
    found = second[0].recover()
    second[0].close()
    assert Log(fast_folder / "log").recover() == found


@pytest.mark.parametrize("moment", ["_replay", "_compact"])
def test_an_owner_that_another_one_overtakes_while_it_opens_the_log_removes_nothing_of_it(
    fast_folder, monkeypatch, moment
):
    first = Log(fast_folder / "log")
    first.commit(TRANSACTIONS[0])
    first.close()
    found: list[Recovered] = []
    goes_on = getattr(Log, moment)

    def late(log: Log, *old: list[Path]) -> object:
        monkeypatch.undo()
        other = Log(fast_folder / "log")
        other.commit(TRANSACTIONS[1])
        found.append(other.recover())
        other.close()
        return goes_on(log, *old)

    monkeypatch.setattr(Log, moment, late)
    with pytest.raises(Overtaken):
        Log(fast_folder / "log")
    assert Log(fast_folder / "log").recover() == found[0]


def test_of_two_that_take_the_log_over_the_one_that_says_so_last_has_the_highest_number(fast_folder, monkeypatch):
    write = log_module._write
    other: list[Log] = []

    def late(file: int, content: bytes) -> None:  # it has its number, and has not said yet that it is the owner
        monkeypatch.undo()
        other.append(Log(fast_folder / "log"))
        other[0].commit(TRANSACTIONS[0])
        write(file, content)

    monkeypatch.setattr(log_module, "_write", late)
    last = Log(fast_folder / "log")
    assert last.owner > other[0].owner
    with pytest.raises(Overtaken):
        other[0].commit(TRANSACTIONS[1])
    last.commit(TRANSACTIONS[1])
    found = last.recover()
    last.close()
    assert Log(fast_folder / "log").recover() == found


def test_what_owners_commit_that_take_a_log_over_from_each_other_is_kept(fast_folder):
    (fast_folder / "mount").symlink_to(fast_folder)
    turns = iter(range(24))
    folders = [fast_folder / "log", fast_folder / "mount" / "log"]
    gone, owners = takeovers.lost(folders, lambda: next(turns, None) is not None)
    assert gone == []
    assert any(owner.said for owner in owners)
    assert {what for owner in owners for what in owner.seen} <= {"owner", "Overtaken"}


def test_a_journal_that_is_overtaken_while_it_is_opened_says_so_and_removes_no_part(tmp_path, monkeypatch):
    (tmp_path / PARTS).mkdir()
    recover = Log.recover
    paths = []

    def late(log: Log) -> Recovered:
        monkeypatch.undo()
        opened("log", tmp_path).close()  # as on a machine where the lock does not hold
        paths.append(tmp_path / PARTS / "of the other one")
        paths[0].write_text("")
        return recover(log)

    monkeypatch.setattr(Log, "recover", late)
    with pytest.raises(ServiceError, match="Another service took over the journal"):
        Journal(tmp_path, "rollout", form="log")
    assert paths[0].exists()


def test_a_log_whose_owner_died_within_a_snapshot_is_as_it_was(fast_folder, monkeypatch):
    log = Log(fast_folder / "log")
    for entries in TRANSACTIONS:
        log.commit(entries)
    log.close()

    def die(*names: object) -> None:
        raise OSError("the process was killed")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", die)
        with pytest.raises(OSError, match="was killed"):
            Log(fast_folder / "log")
    again = Log(fast_folder / "log")
    assert again.recover() == log.recover()
    kinds = sorted(path.name.partition("-")[0].lstrip("0") for path in (fast_folder / "log").iterdir())
    assert kinds == ["3", "epoch", "owner"], "nothing else is left"


async def test_a_log_waits_for_a_full_disk_and_for_a_read_only_one_and_goes_on(tmp_path, monkeypatch):
    journal = Journal(tmp_path, "rollout", form="log")
    for number, code in enumerate((errno.ENOSPC, errno.EROFS)):

        def half(file: int, content: bytes, code: int = code) -> None:
            os.write(file, content[: len(content) // 2])
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            patched.setattr(log_module, "_write", half)
            journal.record(replace(asked(f"c {number}"), sampler=None))
            waiting = asyncio.ensure_future(journal.durable())
            await until(lambda: journal.problem is not None)
            assert not waiting.done()
            assert os.strerror(code) in str(journal.problem)
        await waiting
        assert journal.problem is None
    journal.close()
    again = Journal(tmp_path, "rollout", form="log")
    assert [collection.asked.collection_id for collection in again.recovered.collections] == ["c 0", "c 1"]
    again.close()


async def test_a_journal_waits_for_a_full_disk_and_for_a_read_only_one_and_goes_on(tmp_path, caplog):
    journal = Journal(tmp_path, "rollout")
    connection = journal._database._connection
    journal.record(asked())
    await journal.durable()
    for broken, mended, words in (
        (f"PRAGMA max_page_count={connection.execute('PRAGMA page_count').fetchone()[0]}",
         "PRAGMA max_page_count=100000", "database or disk is full"),
        ("PRAGMA query_only=1", "PRAGMA query_only=0", "readonly database"),
    ):  # fmt: skip
        connection.execute(broken)
        for number in range(200):  # more than the free room in the pages that there are
            journal.record(replace(asked(f"{words} {number}"), sampler=None))
        waiting = asyncio.ensure_future(journal.durable())
        await until(lambda: journal.problem is not None)
        assert not waiting.done()
        assert words in str(journal.problem)
        connection.execute(mended)
        await waiting
        assert journal.problem is None
    assert "make room or repair the disk" in caplog.text
    journal.close()
    again = Journal(tmp_path, "rollout")
    assert len(again.recovered.collections) == 401
    again.close()


@pytest.mark.parametrize("form", FORMS)
async def test_an_entry_that_is_safe_is_not_waited_for_while_the_disk_is_busy_with_a_later_one(
    tmp_path, monkeypatch, form
):
    journal = Journal(tmp_path, "rollout", form=form)
    first = journal.record(asked())
    await journal.durable(first)
    disk, commit = threading.Event(), journal._database.commit
    monkeypatch.setattr(journal._database, "commit", lambda entries: disk.wait() and commit(entries))
    second = journal.record(Delivered("c", 0))
    await journal.durable(first)
    waiting = asyncio.ensure_future(journal.durable(second))
    await asyncio.sleep(0)
    assert not waiting.done()
    disk.set()
    await waiting
    journal.close()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_a_file_whose_part_waited_for_a_full_disk_is_kept(tmp_path, monkeypatch):
    """The entry about it waits longer than a file is added to."""
    now = [0.0]
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now[0])
    journal = Journal(tmp_path, "rollout")
    files = PartFiles(tmp_path / PARTS, "node")
    first, second = (files.write(make_trajectory()) for _ in range(2))
    for entry in (asked(), stored(0, first), stored(1), Delivered("c", 0)):
        journal.record(entry)
    await journal.durable()
    commit = journal._database.commit

    def late(entries: list[Entry]) -> list[Part]:
        monkeypatch.setattr(journal._database, "commit", commit)
        journal.record(stored(2, second))
        now[0] = 10 * OPEN_SECONDS
        return commit(entries)

    monkeypatch.setattr(journal._database, "commit", late)
    journal.record(Acknowledged("c", (0,)))
    await journal.durable()
    await journal.durable()
    assert is_there(tmp_path / PARTS, second)
    journal.close()


@pytest.mark.parametrize("form", FORMS)
async def test_a_service_whose_journal_another_one_took_over_hands_out_nothing_more(tmp_path, form):
    journal = Journal(tmp_path, "rollout", form=form)
    other = opened(form, tmp_path)  # as on a machine where the lock does not hold
    journal.record(asked())
    with pytest.raises(ServiceError, match="Another service took over"):
        await journal.durable()
    assert other.recover().collections == []
    journal.record(asked())
    with pytest.raises(ServiceError, match="Another service took over"):
        await journal.durable()
    journal.close()


async def test_what_comes_after_the_end_is_refused_and_not_waited_for(tmp_path):
    journal = Journal(tmp_path, "rollout")
    journal.close()
    journal.record(asked())
    with pytest.raises(ServiceError, match="is ending"):
        await journal.durable()


async def test_what_a_full_disk_kept_from_the_journal_until_the_end_does_not_count_as_safe(tmp_path, monkeypatch):
    def fill(entries: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    journal = Journal(tmp_path, "rollout")
    monkeypatch.setattr(journal._database, "commit", fill)
    journal.record(asked())
    waiting = asyncio.ensure_future(journal.durable())
    await until(lambda: journal.problem is not None)
    await asyncio.to_thread(journal.close)
    with pytest.raises(ServiceError, match="is ending"):
        await waiting


@pytest.mark.parametrize("form", FORMS)
def test_a_second_service_on_the_same_journal_is_refused_until_the_first_one_ends(tmp_path, form):
    first = Journal(tmp_path, "rollout", form=form)
    with pytest.raises(ServiceError, match=r"belongs to service rollout \(process \d+ on .*\), which runs"):
        Journal(tmp_path, "another", form=form)
    first.close()
    Journal(tmp_path, "another", form=form).close()


@pytest.mark.parametrize(("form", "other"), [("sqlite", "log"), ("log", "sqlite")])
def test_a_journal_of_the_other_form_is_refused_and_kept(tmp_path, form, other):
    Journal(tmp_path, "rollout", form=form).close()
    (tmp_path / PARTS / "a part").write_text("")
    with pytest.raises(ServiceError, match=f"has the form {form}, and service.journal_form is {other}"):
        Journal(tmp_path, "rollout", form=other)
    assert (tmp_path / PARTS / "a part").exists()


def test_where_the_file_system_has_no_locks_a_log_is_taken_over_and_a_database_refused(tmp_path, monkeypatch):
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(place.fcntl, "flock", no_locks)
    with pytest.raises(ServiceError, match="No locks available"):
        Journal(tmp_path / "database", "rollout")
    first, second = (Journal(tmp_path / "log", "rollout", form="log") for _ in range(2))
    path = tmp_path / "log" / PARTS / "of the second one, not recorded yet"
    path.write_text("")
    first.close()
    assert path.exists(), "the first one is no owner any more"
    second.close()
    assert not path.exists()


def test_a_log_of_a_newer_release_is_refused_and_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(log_module, "VERSION", 99)
        Log(tmp_path / "log").close()
    before = sorted((tmp_path / "log").iterdir())
    with pytest.raises(ServiceError, match="has format 99; this release knows formats up to 3"):
        Journal(tmp_path, "rollout", form="log")
    assert sorted((tmp_path / "log").iterdir()) == before


def test_a_journal_of_a_newer_release_and_a_file_that_is_none_are_refused_and_kept(tmp_path):
    path = tmp_path / "journal.sqlite"
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version=99")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(ServiceError, match="format 99; this release knows formats up to 4"):
        Journal(tmp_path, "rollout")
    assert path.read_bytes() == before
    path.write_bytes(b"something else " * 100)
    with pytest.raises(ServiceError, match="is no journal, or is damaged"):
        Journal(tmp_path, "rollout")
    assert path.read_bytes() == b"something else " * 100


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match=r"service\.journal: .*/file cannot be used"):
        Journal(tmp_path / "file", "rollout")


@pytest.mark.parametrize(
    ("mounts", "refused"),
    [
        ("/dev/vda / ext4 rw 0 0\nhost:/x /data nfs4 rw 0 0", "nfs4, mounted at /data"),
        ("/dev/vda / ext4 rw 0 0\nbucket /data fuse.gcsfuse rw 0 0", "fuse.gcsfuse, mounted at /data"),
        ("host:/x / nfs rw 0 0\n/dev/vda /data xfs rw 0 0", None),
        ("host:/x /data nfs rw 0 0\n/dev/vda /data/run ext4 rw 0 0", None),
        ("host:/x /data/runs nfs rw 0 0\n/dev/vda / ext4 rw 0 0", None),
        ("/dev/vda / ext4 rw 0 0\nhost:/x /data\\040b nfs rw 0 0", None),
    ],
)
def test_a_network_file_system_is_refused(mounts, refused):
    if refused is None:
        check_file_system(Path("/data/run/journal"), mounts)
    else:
        with pytest.raises(ServiceError, match=f"{refused}.*service.journal_form to log"):
            check_file_system(Path("/data/run/journal"), mounts)


async def test_opening_removes_what_no_episode_needs_and_an_acknowledgement_its_parts(tmp_path):
    journal = Journal(tmp_path, "rollout", discarded=(told := []).extend)
    folder = tmp_path / PARTS
    parts = [PartFiles(folder, "node").write(make_trajectory(trajectory_id=f"c-{i}")) for i in range(3)]
    for entry in (asked(), stored(0, parts[0]), stored(1, parts[1])):
        journal.record(entry)
    journal.close()
    (folder / "of a process that died").write_text("torn")
    journal = Journal(tmp_path, "rollout", discarded=told.extend)
    assert {path.name for path in folder.iterdir()} == {parts[0].name, parts[1].name}
    for entry in (Delivered("c", 0), Acknowledged("c", (0,))):
        journal.record(entry)
    journal.close()
    assert list(folder.iterdir()) == []
    assert told == parts[:2]


@pytest.mark.parametrize("is_opened_again", [False, True])
async def test_a_file_of_several_parts_goes_with_the_last_of_them(tmp_path, is_opened_again):
    journal = Journal(tmp_path, "rollout", discarded=(told := []).extend)
    files, members = PartFiles(tmp_path / PARTS, "node"), PARTS_OF_A_FILE // 2
    parts = [files.write(make_trajectory(trajectory_id=f"c-{i}")) for i in range(PARTS_OF_A_FILE)]
    path = tmp_path / PARTS / parts[0].name
    for entry in (asked(groups=members), *(stored(i, part) for i, part in enumerate(parts))):
        journal.record(entry)
    for group in range(members):
        journal.record(Delivered("c", group))
        if group == members // 2 and is_opened_again:
            journal.close()
            journal = Journal(tmp_path, "rollout", discarded=told.extend)
        await journal.durable()
        assert path.exists()
        journal.record(Acknowledged("c", (group,)))
    await journal.durable()
    assert not path.exists()
    assert [part.name for part in told] == [path.name]
    journal.close()
