"""Whatever was done to a stored file, the audit gives a result for each of its records, and names those that were
changed."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import socket
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.audit.verify import Violation, verify
from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from rollout_service.record import schema, storage
from rollout_service.record.trajectory import Trajectory
from tests.support import episodes

Path_ = tuple[str | int, ...]

UNTOLD = {
    "altered": """
        trajectory_id collection_id group_id sample_index seed attempt
        segments.token_ids segments.weight_versions segments.turns.cached_tokens segments.turns.policy_seconds
        segments.turns.queue_seconds
        messages.content messages.error messages.timestamp messages.cost
        timing.queue_seconds timing.policy_seconds timing.user_seconds timing.environment_seconds
        timing.evaluation_seconds user_usage.prompt_tokens user_usage.completion_tokens user_usage.cost_usd
        user_usage.requests user_usage.failed_requests
        provenance.model provenance.user provenance.service_version provenance.sampling.temperature
        provenance.sampling.max_new_tokens provenance.sampling.ignore_eos
        provenance.limits.max_steps provenance.limits.max_errors provenance.limits.max_turns
    """,
    "dropped": """
        messages.cost messages.turn_idx reward_info.nl_assertions reward_info.communicate_checks
        provenance.sampling.temperature provenance.sampling.top_p provenance.sampling.top_k
        provenance.sampling.max_new_tokens provenance.sampling.stop_token_ids provenance.sampling.ignore_eos
        provenance.limits.max_steps provenance.limits.max_errors provenance.limits.max_turns
    """,
    "retyped": "",
}
"""Where a change of one kind gives a record that an honest episode could have, by the names along the path. Of token
ids, versions and contents this holds for some places only: ids of the context, the newest version, what the user said.
"""


@pytest.fixture(scope="module")
def sound() -> Trajectory:
    return episodes.run("telecom", 26, policy__script={"malformed_call": 0.5})


@pytest.fixture(scope="module")
def small() -> Trajectory:
    return episodes.run("mock", 1)


def audit(path: Path, **options: Any) -> list[list[Violation]]:
    return [found for _, found in verify(storage.salvage(path), **options)]


def record_of(trajectory: Trajectory) -> dict[str, Any]:
    return json.loads(json.dumps(trajectory.to_dict()))


def line(record: Any) -> bytes:
    return json.dumps(record).encode() + b"\n"


def places(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every node; of a long list of the first, the middle and the last item only."""
    if path:
        yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    if isinstance(node, list):
        for at in sorted({0, len(node) // 2, len(node) - 1} & set(range(len(node)))):
            yield from places(node[at], (*path, at))


def altered(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + type(value)(1) if value >= 0 else value - type(value)(1)
    return value + "x"


def retyped(value: Any) -> Any:
    return "text" if isinstance(value, bool | int | float | list) else [0.5]


def changed(record: dict[str, Any], path: Path_, change: Callable[[Any], Any] | None) -> dict[str, Any]:
    """A copy with the node at `path` changed, or dropped. It shares with the record what does not hold the node: a
    deep copy for each node of a record takes longer than its audit."""
    parent = copied = copy.copy(record)
    for key in path[:-1]:
        parent[key] = copy.copy(parent[key])
        parent = parent[key]
    if change is None:
        del parent[path[-1]]
    else:
        parent[path[-1]] = change(parent[path[-1]])
    return copied


@pytest.mark.parametrize(("kind", "change"), [("altered", altered), ("dropped", None), ("retyped", retyped)])
def test_every_change_of_a_record_is_found_but_those_that_nothing_tells(
    kind: str, change: Callable[[Any], Any] | None, sound: Trajectory, small: Trajectory, tmp_path: Path
) -> None:
    record = record_of(sound if kind == "altered" else small)
    del record["schema_version"]
    leaf = [p for p in places(record) if kind != "altered" or isinstance(_at(record, p), bool | int | float | str)]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(line({"schema_version": 2, **changed(record, p, change)}) for p in leaf))
    found = audit(path)
    assert len(found) == len(leaf)
    untold = {".".join(key for key in p if isinstance(key, str)) for p, v in zip(leaf, found, strict=True) if not v}
    assert untold <= {*UNTOLD[kind].split(), *(added(Trajectory) if kind == "dropped" else ())}


def added(cls: Any, path: str = "") -> Iterator[str]:
    """Fields that older files lack, so that nothing tells who left them out."""
    for item in dataclasses.fields(cls):
        hint, _ = schema.or_none(schema.hints(cls)[item.name])
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is list else hint
        if item.metadata == schema.ADDED:
            yield f"{path}{item.name}"
        elif dataclasses.is_dataclass(inner):
            yield from added(inner, f"{path}{item.name}.")


def _at(record: Any, path: Path_) -> Any:
    for key in path:
        record = record[key]
    return record


OTHER = st.sampled_from(
    [None, True, False, 0, -1, 1, 10**30, 10**400, -(2**31), 0.5, float("nan"), float("inf"), "", "x", "\ud800", [], {}]
) | st.recursive(st.none() | st.text(max_size=3), lambda part: st.lists(part, max_size=2), max_leaves=4)


@st.composite
def mutations(draw: st.DrawFn, record: dict[str, Any]) -> dict[str, Any]:
    """The record with some of its nodes dropped, replaced, doubled, or exchanged."""
    mutated = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = _draw_node(draw, mutated)
        match draw(st.sampled_from(["drop", "replace", "double", "exchange"])):
            case "drop":
                del parent[key]
            case "replace":
                parent[key] = draw(OTHER)
            case "double" if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case _:
                other, place = _draw_node(draw, mutated)
                parent[key] = copy.deepcopy(other[place])
    return mutated


def _draw_node(draw: st.DrawFn, record: dict[str, Any]) -> tuple[Any, Any]:
    node: Any = record
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 3)) == 0:
            return node, key
        node = node[key]


@given(data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
def test_no_mutation_of_a_record_ends_the_audit(data: st.DataObject, small: Trajectory, tmp_path: Path) -> None:
    record = record_of(small)
    path = tmp_path / "x.jsonl"
    path.write_bytes(line(data.draw(mutations(record))) + line(record))
    found = audit(path)
    assert len(found) == 2
    assert found[1] == []


def _shorter_mask(record: dict[str, Any]) -> None:
    record["segments"][0]["loss_mask"].pop()


def _span_outside(record: dict[str, Any]) -> None:
    record["segments"][0]["turns"][-1]["end"] += 10**9


def _backwards(record: dict[str, Any]) -> None:
    turn = record["segments"][0]["turns"][0]
    turn["start"], turn["end"] = turn["end"], turn["start"]


def _nan_logprob(record: dict[str, Any]) -> None:
    record["segments"][0]["logprobs"][-1] = float("nan")


def _unknown_role(record: dict[str, Any]) -> None:
    record["messages"][1]["role"] = "moderator"


def _no_such_message(record: dict[str, Any]) -> None:
    record["segments"][0]["turns"][-1]["message_index"] = 10**6


def _nameless_call(record: dict[str, Any]) -> None:
    next(m for m in record["messages"] if m.get("tool_calls"))["tool_calls"][0]["name"] = ""


def _fraction(record: dict[str, Any]) -> None:
    record["segments"][0]["token_ids"][-1] += 0.5


def _text_for_a_number(record: dict[str, Any]) -> None:
    record["segments"][0]["token_ids"][-1] = str(record["segments"][0]["token_ids"][-1])


def _unknown_evaluation(record: dict[str, Any]) -> None:
    record["provenance"]["evaluation"] = "vibes"


@pytest.mark.parametrize(
    ("check", "damage"),
    [
        ("tokens", _shorter_mask),
        ("prefix", _span_outside),
        ("tokens", _backwards),
        ("tokens", _nan_logprob),
        ("record", _unknown_role),
        ("record", _no_such_message),
        ("messages", _nameless_call),
        ("record", _fraction),
        ("record", _text_for_a_number),
        ("record", _unknown_evaluation),
    ],
)
def test_damage_of_one_record_is_its_violation_and_the_next_is_audited(
    check: str, damage: Callable[[dict[str, Any]], None], small: Trajectory, tmp_path: Path
) -> None:
    damaged = record_of(small)
    damage(damaged)
    path = tmp_path / "x.jsonl"
    path.write_bytes(line(damaged) + line(record_of(small)))
    first, second = audit(path)
    assert check in {violation.check for violation in first}, first
    assert {violation.trajectory_id for violation in first} == {small.trajectory_id}
    assert second == []


@pytest.mark.parametrize("broken", [b"{oops}\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"17\n", b"\n"])
def test_a_line_that_is_not_json_is_named_and_hides_no_other(broken: bytes, small: Trajectory, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    whole = line(record_of(small))
    path.write_bytes(whole + broken + whole + whole[:-20])
    first, second, third, fourth = audit(path)
    assert (first, third) == ([], [])
    assert str(second[0]).startswith(f"{path}, line 2 [record] ")
    assert str(second[0]).count(str(path)) == 1
    assert "unfinished" in str(fourth[0])


@pytest.mark.parametrize("column", ["trajectory_id", "task_index", "reward_info", "messages", "segments", "provenance"])
def test_a_null_in_a_column_of_parquet_is_a_violation_of_its_row(
    column: str, small: Trajectory, tmp_path: Path
) -> None:
    path = tmp_path / "x.parquet"
    storage.write(path, [small, small, small])
    (part,) = path.iterdir()
    table = pq.read_table(part)
    values = table[column].to_pylist()
    values[1] = None
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), part)
    first, second, third = audit(path)
    assert (first, third) == ([], [])
    assert second != []


def test_a_null_among_the_tokens_of_parquet_is_a_violation_of_its_row(small: Trajectory, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write(path, [small, small])
    (part,) = path.iterdir()
    table = pq.read_table(part)
    segments = table["segments"].to_pylist()
    segments[0][0]["logprobs"][-1] = None
    at = table.schema.get_field_index("segments")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(segments, table.schema.field(at).type)), part)
    first, second = audit(path)
    assert "logprobs" in str(first[0])
    assert second == []


def test_a_damaged_part_of_parquet_hides_no_other(small: Trajectory, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write(path, [small])
    storage.write(path, [small], append=True)
    (path / "part-00000.parquet").write_bytes(b"PAR1 no more")
    first, second = audit(path)
    assert "part-00000.parquet [record] is damaged" in str(first[0])
    assert second == []


@pytest.mark.parametrize(
    "name", ["nobody/no-such-model", "gpt2", "", "/no/such/folder", "~nobody/x", "a\0b", "x" * 5000]
)
def test_a_tokenizer_that_only_the_file_names_is_never_fetched(
    name: str, small: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("the audit opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    other = copy.deepcopy(small)
    other.provenance.tokenizer = name
    ((_, found), (_, behind)) = verify([other, small])
    assert [violation.check for violation in found] == ["messages"]
    assert "Name the tokenizer with --tokenizer" in found[0].problem
    assert behind == []
    ((_, found),) = verify([other], tokenizer=str(EMBEDDED_TOKENIZER))
    assert found == []


def test_a_folder_that_the_file_names_is_read_and_none_of_its_code_is_run(small: Trajectory, tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED_TOKENIZER, tmp_path / "tokenizer")
    other = copy.deepcopy(small)
    other.provenance.tokenizer = str(folder)
    assert [found for _, found in verify([other])] == [[]]

    trap = shutil.copytree(folder, tmp_path / "trap")
    config = json.loads((trap / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["trap.Trap", "trap.Trap"]}}
    (trap / "tokenizer_config.json").write_text(json.dumps(config))
    (trap / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\nclass Trap: ...\n")
    other.provenance.tokenizer = str(trap)
    ((_, found), (_, behind)) = verify([other, small])
    assert {violation.check for violation in found} <= {"messages"}
    assert behind == []
    assert not (tmp_path / "sprung").exists()


def test_values_of_wrong_types_in_memory_are_found_too(small: Trajectory) -> None:
    other = copy.deepcopy(small)
    other.segments[0].logprobs = other.segments[0].logprobs.astype(np.float64)
    assert "segments[0].logprobs" in str(next(verify([other]))[1][0])
    assert next(verify([other], checks=["reward"]))[1] != []
