"""The viewer's page as a file: everything comes back from it, and nothing in a trajectory becomes markup."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.audit.verify import Violation
from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import CodecError, ConfigError, StorageError
from rollout_service.record import storage
from rollout_service.record.manifest import Asked, Manifest
from rollout_service.record.trajectory import Outcome, Provenance, TokenSegment, Trajectory, Turn
from rollout_service.record.writing_lock import writing_lock
from rollout_service.viewer import episode
from rollout_service.viewer.blocks import to_line
from rollout_service.viewer.token_record import Heads, token_record
from rollout_service.viewer.writer import write_page
from tests.support.commands import command
from tests.support.trajectories import FREE_TEXT, make_member, make_segment, make_trajectory, segments
from tests.viewer.many import many_episodes
from tests.viewer.reading import Page

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \x00\x1b[31m \u202e \u05e9 \ud800 \udfff"


def page_of(folder: Path, *stored: Trajectory, **options: Any) -> Page:
    storage.write(folder / "some.jsonl", stored)
    write_page([folder / "some.jsonl"], folder / "page.html", **options)
    return Page(folder / "page.html")


def arrays(packed: dict[str, Any], heads: list[list[int]]) -> dict[str, list[Any]]:
    """A segment's arrays as the page's script gives them back."""

    def spread(runs: list[int]) -> list[int]:
        return [value for value, count in zip(runs[::2], runs[1::2], strict=True) for _ in range(count)]

    logprobs = iter(packed["logprobs"])
    return {
        "token_ids": heads[packed["head"]][: packed["shared"]] + packed["ids"],
        "loss_mask": spread(packed["mask"]),
        "weight_versions": spread(packed["versions"]),
        "logprobs": [next(logprobs) if has else 0.0 for has in spread(packed["logprobAt"])],
    }


@settings(max_examples=25)
@given(st.lists(segments(), max_size=4))
def test_every_array_comes_back_from_the_page(drawn):
    heads = Heads()
    stored = [make_trajectory(segments=drawn), make_trajectory(segments=drawn[1:])]
    packed = [json.loads(to_line(token_record(trajectory, heads))) for trajectory in stored]
    kept = [head.tolist() for head in heads.all]
    for trajectory, found_segments in zip(stored, packed, strict=True):
        for segment, found in zip(trajectory.segments, found_segments, strict=True):
            back = arrays(found, kept)
            for name in ("token_ids", "loss_mask", "weight_versions"):
                assert back[name] == getattr(segment, name).tolist()
            assert back["logprobs"] == [round(float(value), 5) for value in segment.logprobs]


@settings(max_examples=50)
@given(st.dictionaries(FREE_TEXT, FREE_TEXT | st.integers(-(2**70), 2**70) | st.floats()))
def test_a_line_is_ascii_json_whose_numbers_javascript_holds(value):
    line = to_line(value)
    assert line.isascii()
    assert "\n" not in line
    back = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for name, item in json.loads(json.dumps(value)).items():
        is_large = isinstance(item, int) and abs(item) >= 2**53
        inexact = is_large or (isinstance(item, float) and not np.isfinite(item))
        assert back[name] == (str(item) if inexact else item)


def test_the_list_has_a_row_for_each_trajectory_and_its_conversation_comes_back(tmp_path):
    stored = [make_member(group, sample, reward=float(sample % 2)) for group in range(3) for sample in range(2)]
    page = page_of(tmp_path, *stored)
    assert [(row["id"], row["group"], row["reward"]) for row in page.rows] == [
        (trajectory.trajectory_id, trajectory.group_id, trajectory.reward) for trajectory in stored
    ]
    for row, trajectory in zip(page.rows, stored, strict=True):
        talk = page.talk(row)
        assert talk["messages"] == trajectory.messages
        assert talk["timing"] == dataclasses.asdict(trajectory.timing)
        assert [turn["segment"] for turn in talk["turns"]] == [0, 0]


def test_an_episode_whose_actor_died_has_no_tokenizer_and_does_not_count_as_another_one(tmp_path):
    died = make_member(0, 1, segments=[], messages=[], reward=None, outcome=Outcome.ABORTED, provenance=Provenance())
    page = page_of(tmp_path, make_member(0, 0, provenance=Provenance(tokenizer="one", tokenizer_fingerprint="1")), died)
    assert [found["name"] for found in page.index["tokenizers"]] == ["one"]


def test_ten_thousand_rows_are_held_by_columns_and_open_block_by_block(tmp_path):
    page = Page(many_episodes(tmp_path / "page.html", 10_000))
    rows = page.rows
    assert len(rows) == 10_000
    assert rows[9_999]["id"] == "1249-7"
    assert len(page.index["columns"]["group"]["values"]) == 1250
    assert len({row["talk"] for row in rows}) > 5
    assert page.talk(rows[9_999])["messages"][0]["content"] == "Where is my order?"


def test_hostile_text_stays_inside_its_block_and_comes_back_as_it_was(tmp_path):
    call = {"id": "1", "name": HOSTILE, "arguments": {HOSTILE: 2**63}, "requestor": "assistant"}
    messages = [
        {"role": "user", "content": HOSTILE},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    page = page_of(tmp_path, make_trajectory(messages=messages, trajectory_id=HOSTILE))
    (row,) = page.rows
    assert row["id"] == HOSTILE
    talk = page.talk(row)
    assert talk["messages"][0]["content"] == HOSTILE
    assert json.loads(talk["messages"][1]["tool_calls"][0]["arguments"]) == {HOSTILE: 2**63}
    assert "alert(1)" not in (tmp_path / "page.html").read_text()
    assert [tag for tag, found in page.tags if tag == "script" and found.get("type") != "text/plain"] == ["script"]
    assert not [tag for tag, found in page.tags if "src" in found or "href" in found or "style" in found]


def test_token_texts_are_the_tokenizer_s_own_and_a_part_of_a_character_has_none(tmp_path):
    codec = ChatCodec.load()
    ids = [*codec.encode_written("Grüße, Wien 🚀"), codec.end_of_turn_id]
    n = len(ids)
    logprobs, versions = np.full(n, -0.5, np.float32), np.zeros(n, np.int32)
    logprobs[0], versions[0] = 0, -1
    segment = TokenSegment(
        np.array(ids, np.int32), np.array([0] + [1] * (n - 1), np.uint8), logprobs, versions, 1, [Turn(1, n, "stop")]
    )
    made = Provenance(tokenizer="embedded", tokenizer_fingerprint=codec.tokenizer_fingerprint)
    page = page_of(tmp_path, make_trajectory(segments=[segment], provenance=made))
    assert page.index["tokenizers"][0]["problem"] == ""
    (vocabulary,) = page.lines("vocabulary-0")
    texts = dict(zip(vocabulary["ids"], vocabulary["texts"], strict=True))
    assert set(texts) == set(ids)
    assert texts[codec.end_of_turn_id] == codec.end_of_turn
    whole = [texts[token] for token in ids[:-1]]
    assert "".join(text for text in whole if text is not None).startswith("Gr")
    assert all(text == codec.decode([token]) for token, text in texts.items() if text is not None)
    assert any(text is None for text in whole), "an emoji is several tokens here, none of which is a character"


def test_a_tokenizer_that_is_not_the_one_that_made_the_tokens_gives_no_texts(tmp_path):
    made = Provenance(tokenizer="embedded", tokenizer_fingerprint="of another")
    elsewhere = Provenance(tokenizer="some/model", tokenizer_fingerprint="x")
    page = page_of(tmp_path, make_trajectory(provenance=made), make_trajectory(provenance=elsewhere))
    other, absent = page.index["tokenizers"]
    assert "is not the one that made the tokens" in other["problem"]
    assert "no folder here" in absent["problem"]
    assert "--tokenizer" in absent["problem"]
    assert page.lines("vocabulary-1") == [{"ids": [], "texts": []}]


def test_violations_stand_at_the_turn_and_the_message_that_they_name(tmp_path):
    first, second = make_segment(), make_segment()
    second.weight_versions[second.loss_mask == 1] = 1  # as new as the first one's newest
    second.turns[1].cached_tokens = 10**6
    second.turns[1].message_index = 0
    broken = make_segment()
    broken.loss_mask[0] = 1
    page = page_of(
        tmp_path,
        make_trajectory(segments=[first, second], provenance=Provenance(history="template")),
        make_trajectory(segments=[broken]),
        checks=["prefix", "tokens"],
    )
    cached, mask = (page.talk(row)["violations"] for row in page.rows)
    assert [found for found in cached if found["check"] == "prefix"] == [
        {
            "check": "prefix",
            "where": "segment 1 turn 1",
            "problem": f"1000000 of {second.turns[1].start} prompt tokens were cached",
            "segment": 1,
            "turn": 3,
        }
    ]
    assert mask[0]["segment"] == 0
    assert "the loss mask is 1 at token 0" in mask[0]["problem"]
    assert [row["violations"] for row in page.rows] == [len(cached), len(mask)]
    assert page.index["checks"] == ["prefix", "tokens"]


@pytest.mark.parametrize(
    ("check", "where", "expected"),
    [
        ("messages", "segment 1 turn 3", {"segment": 1, "turn": 3}),
        ("prefix", "segment 1 turn 1", {"segment": 1, "turn": 3}),
        ("messages", "message 4", {"message": 4}),
        ("tokens", "turn 2", {"turn": 2}),
        ("tokens", "segment 0", {"segment": 0}),
        ("reward", "replay", {}),
    ],
)
def test_a_violation_s_place_is_read_as_the_check_counts(check, where, expected):
    trajectory = make_trajectory(segments=[make_segment(), make_segment()])
    assert episode.place(Violation("trajectory-0", check, where, "a problem"), trajectory) == expected


def test_files_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / folder / "some.jsonl" for folder in ("step_1", "step_2")]
    for path in paths:
        storage.write(path, [make_trajectory()])
    write_page(paths, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert [file["name"] for file in page.index["files"]] == ["step_1/some.jsonl", "step_2/some.jsonl"]
    assert [row["file"] for row in page.rows] == [0, 1]


def test_a_file_that_is_still_being_written_and_another_schema_are_named_and_never_shown_as_episodes(tmp_path):
    path = tmp_path / "growing.jsonl"
    storage.write(path, [make_trajectory()])
    path.write_text(path.read_text() + '{"schema_version": 1}\n' + path.read_text()[:50])
    result = command("view", path, "--output", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert result.returncode == 1
    assert "still being written" in result.stderr
    assert "2 records cannot be read" in result.stderr
    assert page.index["files"] == [
        {
            "name": "growing.jsonl",
            "readable": 1,
            "unreadable": 2,
            "note": "Its last line breaks off: it is still being written, or its writer was killed.",
        }
    ]
    assert [row["outcome"] for row in page.rows] == ["completed", "unreadable", "unreadable"]
    assert "schema version 1" in page.rows[1]["said"]
    assert page.rows[2]["reward"] is None
    assert page.rows[2]["turns"] is None


def test_a_file_that_lacks_episodes_that_were_asked_for_or_has_a_writer_says_so(tmp_path):
    short, held = tmp_path / "short.jsonl", tmp_path / "held.parquet"
    storage.write(short, [make_trajectory()])
    Manifest([Asked("collection-0", 8, 4, 0, 8, {})]).write(short)
    storage.write(held, [make_trajectory()])
    (held / "part-00001.parquet").write_bytes(b"PAR1 and then nothing")
    with writing_lock(short):
        first, second = write_page([short, held], tmp_path / "page.html")
    assert first.note == "A process still writes to it, so later episodes are missing here."
    assert second.note == "Its last part breaks off: it is still being written, or its writer was killed."
    assert (second.readable, second.unreadable) == (1, 1)
    (first,) = write_page([short], tmp_path / "page.html")
    assert first.note == "It holds 1 of the 8 episodes that were asked for."


def test_jsonl_and_parquet_give_the_same_page(tmp_path):
    stored = [make_member(0, sample) for sample in range(3)]
    pages = []
    for name in ("some.jsonl", "some.parquet"):
        storage.write(tmp_path / name, stored)
        write_page([tmp_path / name], tmp_path / f"{name}.html")
        page = Page(tmp_path / f"{name}.html")
        pages.append((page.rows, [page.talk(row) for row in page.rows], [page.tokens(row) for row in page.rows]))
    assert pages[0] == pages[1]


def test_the_page_may_run_its_own_script_and_style_only_and_ask_the_network_for_nothing(tmp_path):
    page = page_of(tmp_path, make_trajectory())
    (policy,) = (found["content"] for tag, found in page.tags if tag == "meta" and "http-equiv" in found)
    rules = dict(re.findall(r"([\w-]+) ([^;]+)", policy or ""))
    assert rules.keys() == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]+'", rules["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/=]+'", rules["style-src"])


def test_an_output_that_is_no_page_an_unknown_check_and_a_file_named_twice_are_refused_before_reading(tmp_path):
    path = tmp_path / "some.jsonl"
    storage.write(path, [make_trajectory()])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"does not end in \.html"):
        write_page([path], path)
    with pytest.raises(ConfigError, match="there is no check 'all'"):
        write_page([path], tmp_path / "page.html", checks=["all"])
    with pytest.raises(ConfigError, match="named twice"):
        write_page([path, path], tmp_path / "page.html")
    with pytest.raises(StorageError, match="does not exist"):
        write_page([path, tmp_path / "none.jsonl"], tmp_path / "page.html")
    assert path.read_bytes() == before
    assert not (tmp_path / "page.html").exists()


def test_a_file_without_a_trajectory_is_refused_and_leaves_the_page_that_was_there(tmp_path):
    empty, page = tmp_path / "empty.jsonl", tmp_path / "page.html"
    empty.write_text("")
    page.write_text("a page")
    with pytest.raises(StorageError, match="holds no trajectory"):
        write_page([empty], page)
    assert page.read_text() == "a page"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "page.html"]
    storage.write(tmp_path / "some.jsonl", [make_trajectory()])
    with pytest.raises(CodecError, match="there is no folder"):
        write_page([tmp_path / "some.jsonl"], page, tokenizer="./none")


def test_arrays_of_unequal_length_are_shown_with_what_verify_finds(tmp_path):
    odd = make_trajectory()
    (segment,) = odd.segments
    segment.loss_mask = segment.loss_mask[:-3]
    (row,) = page_of(tmp_path, odd).rows
    assert row["outcome"] == "completed"
    assert row["violations"] > 0
    assert (row["oldest"], row["newest"]) == (None, None)


def test_a_record_that_cannot_be_shown_is_a_row_that_says_why_and_hides_no_other(tmp_path):
    odd = make_trajectory(messages=[{"role": "assistant", "tool_calls": [{"no": "name"}]}])
    page = page_of(tmp_path, odd, make_trajectory(outcome=Outcome.TRUNCATED), checks=[])
    assert [row["outcome"] for row in page.rows] == ["unreadable", "truncated"]
    assert "cannot be shown" in page.rows[0]["said"]
