"""Files of parts go when none of their parts is needed and none can be added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.journal.entries import Discarded, Stored
from rollout_service.journal.files import _CLOSED_SECONDS, Files
from rollout_service.record.part import Part
from rollout_service.record.part_files import OPEN_SECONDS, PartFiles
from rollout_service.record.trajectory import Outcome
from tests.support.trajectories import make_trajectory


def a_part(number: int, of: int = 3, name: str = "file") -> Part:
    return Part(name, f"{number}", "node", number, 1, of)


def stored(part: Part) -> Stored:
    return Stored("c", 0, 1, EpisodeSummary("t", Outcome.COMPLETED, "user_stop", 1.0, None, part=part))


@given(st.permutations([(number, is_given_up) for number in range(3) for is_given_up in (False, True)]))
def test_a_full_file_goes_with_the_last_of_its_parts_in_whatever_order_they_are_given_up(order):
    files, recorded, gone = Files([]), set(), []
    for number, is_given_up in order:
        if not is_given_up and number not in recorded:
            recorded.add(number)
            gone += files.recorded([stored(a_part(number))], [], 0.0)
        elif number in recorded:
            recorded.discard(number)
            gone += files.recorded([], [a_part(number)], 0.0)
    over = len(gone) == 1
    assert over == all(order.index((number, True)) > order.index((number, False)) for number in range(3))


def test_a_file_that_is_not_full_goes_when_nothing_can_be_added_to_it():
    files = Files([])
    assert files.recorded([stored(a_part(0)), Discarded(a_part(1))], [a_part(1)], 0.0) == []
    assert files.recorded([], [a_part(0)], 1.0) == []
    assert files.recorded([stored(a_part(0, name="another"))], [], _CLOSED_SECONDS - 1.0) == []
    assert files.recorded([], [], _CLOSED_SECONDS + 60.0) == [a_part(0)]
    assert files.recorded([], [], 10 * _CLOSED_SECONDS) == [], "the other one is needed"


def test_a_file_that_was_there_when_the_journal_was_opened_goes_with_the_parts_that_were_needed():
    files = Files([a_part(0), a_part(2)])
    assert files.recorded([], [a_part(2)], 0.0) == []
    assert files.recorded([], [a_part(0)], 0.0) == [a_part(0)]


def test_a_file_is_added_to_for_some_minutes_only(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rollout_service.record.part_files.time.monotonic", lambda: now[0])
    files = PartFiles(tmp_path, "node")
    names = []
    for now[0] in (1.0, OPEN_SECONDS, OPEN_SECONDS + 1.0, OPEN_SECONDS + 2.0):
        names.append(files.write(make_trajectory()).name)
    assert names[0] == names[1] != names[2] == names[3]
