"""Rows for supervised training and Hugging Face datasets, as the libraries read them that they are for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rollout_service.errors import CodecError, StorageError
from rollout_service.export.exporting import export
from rollout_service.record import storage
from tests.support import episodes


@pytest.fixture(scope="module")
def played():
    """A policy that writes broken calls now and then."""
    runner = episodes.runner(episodes.settings(policy__script__malformed_call=0.5))
    return [runner.run(episodes.request(episodes.task("mock", n), seed=n, name=str(n))) for n in range(3)]


@pytest.fixture(scope="module")
def stored(played, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "mock.parquet"
    storage.write(path, played)
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_has_the_engine_s_tokens_and_the_mask_of_what_was_sampled(played, stored, tmp_path):
    rows = rows_of(export(stored, "sft", tmp_path / "rows.jsonl").output)
    assert len(rows) == len(played)
    for row, trajectory in zip(rows, played, strict=True):
        [segment] = trajectory.segments
        assert row["input_ids"] == segment.token_ids.tolist()
        assert row["assistant_masks"] == segment.loss_mask.tolist()
        assert [(turn["start"], turn["end"]) for turn in row["turn_facts"]] == [(t.start, t.end) for t in segment.turns]
        assert [turn["valid_calls"] for turn in row["turn_facts"]] == [t.facts.valid_calls for t in segment.turns]
        assert (row["trajectory_id"], row["reward"]) == (trajectory.trajectory_id, trajectory.reward)


def test_the_messages_of_a_row_are_those_of_its_tokens_and_say_what_the_policy_wrote(played, stored, tmp_path):
    codec = episodes.codec()
    row = rows_of(export(stored, "sft", tmp_path / "rows.jsonl").output)[0]
    [segment] = played[0].segments
    assert [message["role"] for message in row["messages"][:3]] == ["system", "assistant", "user"]
    wrote = [message for message in row["messages"] if message["train"]]
    assert len(wrote) == len(segment.turns)
    for message, turn in zip(wrote, segment.turns, strict=True):
        text = codec.decode(segment.token_ids[turn.start : turn.end].tolist())
        if turn.tool_calls and set(turn.tool_calls) == {"ok"}:
            [call] = message["tool_calls"]
            assert json.loads(call["function"]["arguments"])
            assert call["function"]["name"] in text
        else:
            assert message["content"] in text
            assert "tool_calls" not in message
    assert {"ok"} < {status for turn in segment.turns for status in turn.tool_calls}
    calls = {call["id"] for message in wrote for call in message.get("tool_calls", [])}
    assert calls <= {message["tool_call_id"] for message in row["messages"] if message["role"] == "tool"}
    assert {tool["function"]["name"] for tool in json.loads(row["tools"])} >= {"create_task"}


def test_the_user_simulator_s_own_calls_are_in_no_row(tmp_path):
    trajectory = next(t for t in (episodes.run("telecom", n) for n in range(3)) if any_user_call(t))
    storage.write(tmp_path / "telecom.jsonl", [trajectory])
    [row] = rows_of(export(tmp_path / "telecom.jsonl", "sft", tmp_path / "rows.jsonl").output)
    assert not any(message["role"] == "user" and message.get("tool_calls") for message in row["messages"])
    assert len(row["messages"]) < len(trajectory.messages)


def any_user_call(trajectory):
    return any(message["role"] == "user" and message.get("tool_calls") for message in trajectory.messages)


def test_each_segment_is_a_row_that_trains_only_what_was_sampled_in_it(tmp_path):
    thought = "<think>\nLet me see.\n</think>\n\n"
    policy = episodes.WrittenTurns(thought + episodes.written("get_users"), thought + "Goodbye.")
    runner = episodes.runner(episodes.settings(policy__history="template"), policy)
    trajectory = runner.run(episodes.request(episodes.task("mock")))
    storage.write(tmp_path / "mock.jsonl", [trajectory])
    rows = rows_of(export(tmp_path / "mock.jsonl", "sft", tmp_path / "rows.jsonl").output)
    assert [row["segment"] for row in rows] == [0, 1]
    assert [sum(row["assistant_masks"]) for row in rows] == [each.policy_token_count for each in trajectory.segments]
    trained = [[message for message in row["messages"] if message["train"]] for row in rows]
    assert [[len(each.get("tool_calls", [])) for each in of_row] for of_row in trained] == [[1], [0]]
    assert {each["reasoning_content"] for of_row in trained for each in of_row} == {"Let me see."}
    assert rows[1]["messages"][-1]["content"] == "Goodbye."


def test_messages_that_are_not_of_the_tokens_or_another_tokenizer_are_refused(played, tmp_path):
    first = played[0]
    other = [*first.messages[:1], first.messages[1] | {"content": "Something else."}, *first.messages[2:]]
    made = first.provenance
    cases = [
        (replace(first, messages=other), StorageError, "do not render to its first"),
        (replace(first, provenance=replace(made, tokenizer="org/model")), CodecError, "--tokenizer"),
        (replace(first, provenance=replace(made, tokenizer_fingerprint="00")), CodecError, "is not the one"),
    ]
    for number, (trajectory, error, words) in enumerate(cases):
        path = tmp_path / f"{number}.jsonl"
        storage.write(path, [trajectory])
        with pytest.raises(error, match=words):
            export(path, "sft", tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.trl
def test_the_datasets_library_reads_the_folder_with_every_column(played, stored, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = export(stored, "hf", tmp_path / "dataset").output
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["trajectory_id"] for row in rows] == [trajectory.trajectory_id for trajectory in played]
    assert rows[0]["segments"][0]["loss_mask"] == played[0].segments[0].loss_mask.tolist()
    assert json.loads(rows[0]["messages"]) == played[0].messages


def test_a_shard_of_the_dataset_is_read_as_trajectories_and_the_card_counts(played, stored, tmp_path):
    folder = export(stored, "hf", tmp_path / "dataset").output
    [shard] = (folder / "data").iterdir()
    assert [trajectory.messages for trajectory in storage.iterate(shard)] == [each.messages for each in played]
    card = (folder / "README.md").read_text()
    assert "| mock | 3 |" in card
    assert "Left out: none." in card
