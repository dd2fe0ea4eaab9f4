"""What a running collection says of itself."""

from __future__ import annotations

import pytest

import actors.attempt as attempt
import actors.delivery as delivery
from actors.running import RunningCollection
from rollout_service.cluster import Call
from rollout_service.collecting.collection import Collection
from rollout_service.collecting.drawing import Drawing
from rollout_service.collecting.filtered import FilteredCollection
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.collecting.scheduler import Assignment
from rollout_service.collecting.staleness import Staleness
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.errors import ServiceError
from rollout_service.record.trajectory import Outcome, TaskRef


def running(groups: int, **settings: object) -> RunningCollection:
    requests = [
        EpisodeRequest(f"c-{number}", "c", f"c-{number}", 0, TaskRef("mock", "base", "t", 0), seed=number)
        for number in range(groups)
    ]
    return RunningCollection(Collection("c", groups, 1, **settings), Drawing(1, requests))


def play(it: Collection, episode: int) -> None:
    it.start(episode)
    it.finish(episode, None, "a", (0, 0))


def test_a_collection_says_what_holds_it_back():
    waiting = running(2)
    assert waiting.held_back == "no slot is free"
    for episode in range(2):
        waiting.collection.start(episode)
    assert waiting.held_back is None, "all run"


def test_a_reader_that_takes_nothing_holds_a_collection_back():
    buffered = running(3, max_buffered_groups=1)
    play(buffered.collection, 0)
    assert "the reader is too slow" in buffered.held_back
    buffered.collection.take()
    assert buffered.held_back == "no slot is free"


def test_groups_that_are_handed_out_ahead_count_as_waiting_for_their_reader():
    ahead = running(5, max_buffered_groups=2)
    ahead.parts = "a journal"
    summaries = [EpisodeSummary(f"c-{episode}", Outcome.COMPLETED, "", 1.0, None) for episode in range(3)]
    for episode in range(2):
        play(ahead.collection, episode)
        ahead.keep(episode, 1, (summaries[episode], Call.of(None)))
    assert ahead.next_group(0).number == 0
    assert list(ahead.delivery.given) == [0, 1]
    assert ahead.held_back == "no slot is free"
    play(ahead.collection, 2)
    ahead.keep(2, 1, (summaries[2], Call.of(None)))
    assert "the reader is too slow" in ahead.held_back
    assert ahead.next_group(0).number == 1
    assert ahead.held_back == "no slot is free"


@pytest.mark.parametrize("what", ["nothing runs", "the buffer is full", "it failed"])
def test_a_finished_group_waits_for_those_that_share_its_transaction_unless_none_can_come(monkeypatch, what):
    monkeypatch.setattr(delivery, "_SHARE_SECONDS", 600.0)
    shared = running(9, max_buffered_groups=3)
    shared.parts, shared.active = "a journal", 1

    def end(episode: int) -> None:
        play(shared.collection, episode)
        shared.keep(episode, 1, (EpisodeSummary(f"c-{episode}", Outcome.COMPLETED, "", 1.0, None), Call.of(None)))

    end(0)
    assert shared.next_group(0).number == 0, "nothing was handed out shortly before"
    end(1)
    end(2)
    assert shared.next_group(0) is None
    if what == "nothing runs":
        shared.active = 0
    elif what == "the buffer is full":
        end(3)
    else:
        shared.error = ServiceError("no actor comes up.")
    assert shared.next_group(0).number == 1
    assert shared.next_group(0).number == 2, "it was noted with the other one, and waits for nothing"


def test_old_weights_hold_a_collection_back():
    stale = running(3, staleness=Staleness(maximum=0, groups_per_update=1))
    play(stale.collection, 0)
    assert "without new weights" in stale.held_back
    stale.collection.take()
    stale.collection.updated(1)
    assert stale.held_back == "no slot is free"


def test_a_collection_that_failed_is_held_back_by_nothing():
    failed = running(2)
    failed.error = ServiceError("no actor comes up.")
    assert failed.held_back is None


@pytest.mark.parametrize(("maximum", "version", "least"), [(None, 7, 0), (2, 7, 5), (9, 7, 0)])
def test_weights_that_would_make_an_episode_too_old_may_not_sample_for_it(maximum, version, least):
    it = running(1, staleness=Staleness(maximum))
    request = it.request_of(Assignment(it.collection, 0, 3, "a"), version)
    assert (request.min_version, request.attempt) == (least, 3)


@pytest.mark.parametrize(("keeps", "least"), [("informative", 0), ("informative", 2), ("reader", 2)])
def test_a_group_that_a_filter_does_not_want_without_what_became_too_old_is_dropped(keeps, least, monkeypatch):
    monkeypatch.setattr(attempt.ray, "put", Call.of)
    collection = FilteredCollection(
        "c", 5, 2, wanted=1, keeps=keeps, max_attempts=1, min_group_size=least, staleness=Staleness(0)
    )
    filtered = RunningCollection(collection, running(4).drawing)
    for episode in range(2):
        play(collection, episode)
        summary = EpisodeSummary(f"c-{episode}", Outcome.COMPLETED, "", float(episode), None, (0, 0))
        filtered.keep(episode, 1, (summary, Call.of(None)))
    collection.updated(1)
    assert filtered.next_group(1) is None
    assert (filtered.delivery.given, collection.shelf.taken, collection.shelf.withheld) == ({}, 0, 0)
    assert (collection.dropped, collection.kept, collection.offers()) == (1, 0, [2]), "another one takes its place"
