"""The tape's files: what was written is read, whoever wrote at the same time and wherever a file was cut."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.config.price import Price
from rollout_service.errors import EpisodeFault, TapeError
from rollout_service.tape.consumption import Consumption
from rollout_service.tape.difference import first_difference, nearest
from rollout_service.tape.episode import EpisodeTape
from rollout_service.tape.folder import TapeFolder
from rollout_service.tape.recording import Entry, Recording, RecordingWriter, Take
from rollout_service.tape.request import ModelRequest, digest

TASK = {"id": "a task", "user_scenario": {"instructions": "be late"}}
TAKE = Take("retail", "a task", digest(TASK), 0, 7, 1)
SETTINGS = {"tau2": "x 1", "user": {"model": "m", "temperature": 0.0}, "judge": {"model": "j"}}


def request(*texts: str, **parameters: Any) -> ModelRequest:
    roles = ("system", "user", "assistant")
    messages = [{"role": roles[at % 3], "content": text} for at, text in enumerate(texts)]
    return ModelRequest("m", parameters or {"seed": 7}, None, messages)


def entry(asked: ModelRequest, answer: str = "yes", **others: Any) -> Entry:
    return Entry("user", asked.key, asked, {"choices": [answer]}, **others)


texts = st.text(max_size=8)
requests = st.builds(
    ModelRequest,
    st.sampled_from(["m", "n"]),
    st.dictionaries(st.sampled_from(["seed", "temperature"]), st.integers(0, 3)),
    st.one_of(st.none(), st.lists(st.fixed_dictionaries({"name": texts}), min_size=1, max_size=2)),
    st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": texts}), max_size=4),
)
entries = st.builds(entry, requests, texts, unanswered=st.integers(0, 3), seconds=st.sampled_from([0.0, 1.25]))


@settings(max_examples=50)
@given(st.lists(entries, max_size=5), st.sampled_from([None, "completed"]), st.data())
def test_a_file_that_is_cut_anywhere_reads_as_its_whole_lines(
    written: list[Entry], outcome: str | None, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = RecordingWriter(Path(folder), TAKE)
        for each in written:
            writer.append(each)
        if outcome:
            writer.finish(outcome)
        (path,) = Path(folder).iterdir()
        whole = Recording.read(path)
        assert whole is not None
        assert (whole.take, whole.entries, whole.outcome) == (TAKE, written, outcome)
        raw = path.read_bytes()
        cut = data.draw(st.integers(0, len(raw)))
        path.write_bytes(raw[:cut])
        lines = raw[:cut].count(b"\n")
        part = Recording.read(path)
        assert (part is None) == (lines == 0)
        if part is not None:
            assert part.entries == written[: lines - 1]


def test_many_writers_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    folder = TapeFolder(tmp_path / "tape")

    def episode(number: int) -> None:
        folder.open_for_writing(SETTINGS)
        tape = EpisodeTape(folder, "record", Take(**{**vars_of(TAKE), "sample_index": number % 4}), lambda: TASK)
        for turn in range(5):
            tape.note(entry(request("system", str(number), str(turn)), f"{number}.{turn}"), is_replayed=False)
        tape.finish("completed")

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(episode, range(32)))
    found = [
        [each.answer["choices"][0] for each in recording.entries]
        for sample in range(4)
        for recording in folder.recordings(Take(**{**vars_of(TAKE), "sample_index": sample}))
    ]
    assert sorted(found) == sorted([f"{number}.{turn}" for turn in range(5)] for number in range(32))
    assert not list((tmp_path / "tape").rglob(".*")), "drafts are gone"


def vars_of(take: Take) -> dict[str, Any]:
    return {name: getattr(take, name) for name in Take.__slots__}


def test_people_can_read_what_was_new_in_each_request(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path, TAKE)
    writer.append(entry(request("rules", "hello"), "hé"))
    writer.append(entry(request("rules", "hello", "hé", "and now?")))
    (path,) = tmp_path.iterdir()
    assert path.name == "sample-0.seed-7.attempt-1.jsonl"
    second = json.loads(path.read_text().splitlines()[2])
    assert second["request"]["after"] == 2
    assert [message["content"] for message in second["request"]["messages"]] == ["hé", "and now?"]
    assert "hé" in path.read_text()


def test_a_line_that_was_edited_is_named(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path, TAKE)
    writer.append(entry(request("rules", "hello")))
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace("hello", "hallo"))
    with pytest.raises(
        TapeError, match=r"line 2 of .*attempt-1\.jsonl cannot be read: .* the request, which was changed"
    ):
        Recording.read(path)


def test_a_key_depends_on_the_question_and_not_on_how_the_model_is_reached() -> None:
    base: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.0}
    key = ModelRequest.of(**base).key
    reached = {"api_key": "secret", "api_base": "http://x", "timeout": 3, "extra_headers": {"X": "y"}, "tools": None}
    assert ModelRequest.of(**base, **reached) == ModelRequest.of(**base)
    for other in ({"temperature": 1.0}, {"seed": 3}, {"messages": []}, {"model": "n"}, {"tools": [{"name": "t"}]}):
        assert ModelRequest.of(**{**base, **other}).key != key


# Settings and tasks --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> TapeFolder:
    made = TapeFolder(tmp_path / "tape")
    made.open_for_writing(SETTINGS)
    return made


def test_two_writers_with_different_settings_are_told_apart(folder: TapeFolder) -> None:
    folder.open_for_writing(SETTINGS)
    with pytest.raises(TapeError, match=r'recorded with user \{"model": "m", "temperature": 0.0\}, .* has .*0.5'):
        folder.open_for_writing({**SETTINGS, "user": {"model": "m", "temperature": 0.5}})
    with pytest.raises(TapeError, match=r'with tau2 "x 1", and this service has "x 2"'):
        folder.check_settings({**SETTINGS, "tau2": "x 2"})


def test_a_tape_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TapeError, match=r"no tape at .*none\. .*tape\.mode: record"):
        TapeFolder(tmp_path / "none").check_settings(SETTINGS)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TapeError, match=r"tape\.path: .* cannot be written: .*Choose a folder"):
        TapeFolder(tmp_path / "file" / "tape").open_for_writing(SETTINGS)


def test_a_task_of_another_version_is_named_with_what_differs(folder: TapeFolder) -> None:
    folder.put_task(TAKE, TASK)
    changed = {**TASK, "user_scenario": {"instructions": "be early"}}
    for domain, task_id, task_hash in (
        ("retail", "a task", TAKE.task_hash),
        ("retail", "another", "0"),
        ("airline", "a task", "0"),
    ):
        folder.check_task(domain, task_id, task_hash, lambda: changed)
    with pytest.raises(TapeError, match=r"'a task' of retail in another version: user_scenario\.instructions differs"):
        folder.check_task("retail", "a task", digest(changed), lambda: changed)


# Replaying -----------------------------------------------------------------------------------------------------------


def replaying(folder: TapeFolder, mode: Any = "replay", **others: Any) -> EpisodeTape:
    return EpisodeTape(folder, mode, Take(**{**vars_of(TAKE), **others}), lambda: TASK)


def record(folder: TapeFolder, *taken: Entry, outcome: str | None = "completed", **others: Any) -> None:
    tape = replaying(folder, "record", **others)
    for each in taken:
        tape.note(each, is_replayed=False)
    if outcome:
        tape.finish(outcome)


def answers(tape: EpisodeTape, *asked: ModelRequest) -> list[str]:
    given = []
    for each in asked:
        found = tape.find("user", each, each.key)
        assert found is not None
        tape.note(found, is_replayed=True)
        given.append(found.answer["choices"][0])
    return given


def test_equal_requests_get_their_answers_in_order_and_no_more(folder: TapeFolder) -> None:
    same = request("rules", "hello")
    record(folder, entry(same, "first"), entry(same, "second"))
    tape = replaying(folder)
    assert answers(tape, same, same) == ["first", "second"]
    with pytest.raises(EpisodeFault, match="it has 2, and the episode asks once more"):
        tape.find("user", same, same.key)
    assert answers(replaying(folder), same) == ["first"]


def test_samples_of_a_group_have_answers_of_their_own(folder: TapeFolder) -> None:
    same = request("rules", "hello")
    record(folder, entry(same, "of 0"))
    record(folder, entry(same, "of 1"), sample_index=1)
    assert answers(replaying(folder, sample_index=1), same) == ["of 1"]
    with pytest.raises(EpisodeFault, match="recorded for another sample"):
        replaying(folder, sample_index=2).find("user", same, same.key)


def test_the_attempt_that_was_finished_is_replayed(folder: TapeFolder) -> None:
    opening, later = request("rules", "hello"), request("rules", "hello", "b", "go on")
    record(folder, entry(opening, "a"), outcome=None)
    record(folder, entry(opening, "b"), entry(later, "end"), attempt=2)
    record(folder, entry(opening, "c"), outcome=None, attempt=3)
    assert answers(replaying(folder), opening, later) == ["b", "end"]


def test_of_two_recordings_of_an_episode_the_newer_is_replayed(folder: TapeFolder) -> None:
    """Also if the older one took more attempts."""
    opening = request("rules", "hello")
    record(folder, entry(opening, "older"), attempt=2)
    older = folder.recordings(TAKE)[0]
    record(folder, entry(opening, "newer"))
    assert answers(replaying(folder), opening) == ["newer"]
    (path,) = folder.of_task(TAKE).glob("*attempt-2.jsonl")
    path.write_text(path.read_text().replace(f'"begun": "{older.begun}", ', ""))  # as earlier versions wrote it
    assert answers(replaying(folder), opening) == ["newer"]
    assert [(each.take.attempt, each.begun) for each in folder.recordings(TAKE)][1:] == [(2, "")]


def test_what_is_missing_is_recorded_as_a_whole_episode(folder: TapeFolder) -> None:
    opening = request("rules", "hello")
    record(folder, entry(opening, "a"), entry(request("rules", "hello", "a", "one way"), "left"))
    other = request("rules", "hello", "a", "the other way")
    tape = replaying(folder, "replay_or_record")
    assert answers(tape, opening) == ["a"]
    assert tape.find("user", other, other.key) is None
    tape.note(entry(other, "right"), is_replayed=False)
    tape.finish("completed")
    assert answers(replaying(folder), opening, other) == ["a", "right"]
    assert answers(replaying(folder), opening, request("rules", "hello", "a", "one way")) == ["a", "left"]


def test_an_episode_that_is_all_on_the_tape_is_not_recorded_again(folder: TapeFolder) -> None:
    opening = request("rules", "hello")
    record(folder, entry(opening))
    tape = replaying(folder, "replay_or_record")
    answers(tape, opening)
    tape.finish("completed")
    assert len(folder.recordings(TAKE)) == 1


def test_a_miss_names_the_message_the_field_and_both_texts(folder: TapeFolder) -> None:
    record(folder, entry(request("rules", "hello")), entry(request("rules", "hello", "hi", "your order is cancelled")))
    asked = request("rules", "hello", "hi", "your order was cancelled")
    with pytest.raises(EpisodeFault) as caught:
        replaying(folder).find("user", asked, asked.key)
    fault = caught.value.fault
    assert (str(fault.kind), fault.error, fault.retryable) == ("service", "NotOnTape", False)
    assert "retail task a task, sample 0, seed 7" in fault.message
    assert fault.message.endswith(
        "First difference from the nearest recorded one: message 3 (system), content: recorded "
        '"your order is cancelled", asked "your order was cancelled"'
    )
    with pytest.raises(EpisodeFault, match="nothing is recorded of the judge"):
        replaying(folder).find("judge", asked, asked.key)
    with pytest.raises(EpisodeFault, match="nothing is recorded of this task"):
        replaying(folder, task_id="b").find("user", asked, asked.key)


@given(requests, requests)
def test_a_difference_is_named_exactly_if_there_is_one(one: ModelRequest, other: ModelRequest) -> None:
    assert (first_difference(one, other) is None) == (one.key == other.key) == (one == other)
    assert nearest(one, [other, one]) == one


def test_long_texts_are_cut_around_the_first_difference() -> None:
    found = first_difference(request("a" * 500 + "x" + "b" * 500), request("a" * 500 + "y" + "b" * 500))
    assert found is not None
    assert found == f'message 0 (system), content: recorded "…{"a" * 30}x{"b" * 29}…", asked "…{"a" * 30}y{"b" * 29}…"'


asked_in_turn = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), texts), max_size=8)


@settings(max_examples=50)
@given(asked_in_turn, st.integers(0, 8), st.sampled_from(["replay", "replay_or_record"]))
def test_whatever_an_episode_asked_is_answered_as_it_was(
    asked: list[tuple[str, str]], unfinished: int, mode: str
) -> None:
    """Also if an attempt before it got other answers to the same requests and was given up."""
    with tempfile.TemporaryDirectory() as path:
        folder = TapeFolder(path)
        lost = [entry(request(text), f"lost {answer}") for text, answer in asked[:unfinished]]
        record(folder, *lost, outcome=None)
        record(folder, *(entry(request(text), answer) for text, answer in asked), attempt=2)
        tape = replaying(folder, mode)
        assert answers(tape, *(request(text) for text, _ in asked)) == [answer for _, answer in asked]


@pytest.mark.parametrize("unknown", ["", "user", "judge", "review"])
def test_an_episode_costs_what_user_judge_and_reviewer_cost_and_no_number_if_one_of_them_is_not_known(unknown):
    costs = {"user": 0.5, "judge": 0.25, "review": 0.125}
    entries = [
        Entry(asked, "", request("a"), {}, cost_usd=None if asked == unknown else usd) for asked, usd in costs.items()
    ]
    consumed = Consumption.of(Recording(TAKE, entries, "completed"), dict.fromkeys(costs, Price()))
    assert consumed.usd == (None if unknown else 0.875)
