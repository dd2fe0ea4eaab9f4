"""Groups over HTTP come out as they went in, and a cut is noticed wherever it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.errors import ServiceError, TaskError
from rollout_service.gateway.delivery import CursorError
from rollout_service.gateway.wire import ArrowWriter, End, NdjsonWriter, of_error, read_arrow, to_error
from rollout_service.record.trajectory import Trajectory
from tests.support.trajectories import as_text, make_member, trajectories, unlike_any_default

GROUPS = [[make_member(number, sample) for sample in range(2)] for number in range(2)]


def written(writer, groups, end: End) -> list[bytes]:
    return [*[writer.group(number, group) for number, group in enumerate(groups, 1)], writer.end(end)]


def test_a_group_that_is_no_data_says_why_in_both_forms():
    writer = ArrowWriter()
    body = writer.group(1, GROUPS[0]) + writer.group(2, GROUPS[1], "1 of 2 have a score") + writer.end(End("ended"))
    assert [group.withheld for group in read_arrow(body)[0]] == ["", "1 of 2 have a score"]
    lines = [json.loads(NdjsonWriter().group(2, GROUPS[1], why)) for why in ("", "1 of 2 have a score")]
    assert ["withheld" in line for line in lines] == [False, True]


def texts(groups) -> list[list[str]]:
    return [[as_text(trajectory) for trajectory in group] for group in groups]


@given(st.lists(st.lists(trajectories(), min_size=1, max_size=2), max_size=2))
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_both_forms_hold_every_trajectory_exactly(groups):
    found, end = read_arrow(b"".join(written(ArrowWriter(), groups, End("ended"))))
    assert [group.number for group in found] == list(range(1, len(groups) + 1))
    assert texts(group.trajectories for group in found) == texts(groups)
    assert end == End("ended")
    *lines, last = [json.loads(line) for line in written(NdjsonWriter(), groups, End("open"))]
    assert texts([[Trajectory.from_dict(record) for record in line["trajectories"]] for line in lines]) == texts(groups)
    assert last == {"state": "open"}


def test_no_field_is_lost():
    group = [unlike_any_default(Trajectory)]
    ((_, (back,), *_),), _ = read_arrow(b"".join(written(ArrowWriter(), [group], End("open"))))
    assert back.to_dict() == group[0].to_dict()


def test_a_cut_anywhere_is_noticed():
    whole = b"".join(written(ArrowWriter(), GROUPS, End("ended")))
    assert texts(group.trajectories for group in read_arrow(whole)[0]) == texts(GROUPS)
    mark = len(b"".join(written(ArrowWriter(), GROUPS, End("ended"))[:-1]))
    for place in [*range(0, mark, 97), *range(mark, len(whole) - 200, 41)]:
        with pytest.raises(ValueError):
            read_arrow(whole[:place])
    with pytest.raises(ValueError):
        read_arrow(b"<html>Bad gateway</html>")


def test_an_error_comes_out_as_its_own_class_with_its_remedy():
    error = to_error(json.loads(json.dumps(of_error(TaskError("n is 7.", "Ask for 8.")))))
    assert (type(error), error.problem, error.remedy) == (TaskError, "n is 7.", "Ask for 8.")
    assert isinstance(to_error(of_error(CursorError("Group 4 was not given."))), ServiceError)
    assert isinstance(to_error({"type": "SystemExit", "problem": "x"}), ServiceError)
    assert isinstance(to_error("Bad gateway"), ServiceError)
