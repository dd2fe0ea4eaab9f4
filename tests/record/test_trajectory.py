"""A trajectory is plain JSON and back, and what it derives agrees with its arrays."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, cast, get_args, get_origin

import numpy as np
from hypothesis import HealthCheck, given, settings

import rollout_service.record.schema as schema
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.errors import Fault, FaultKind
from rollout_service.record.batch import TrajectoryBatch
from rollout_service.record.trajectory import SCHEMA_VERSION, Outcome, Trajectory, outcome_of
from rollout_service.termination import TerminationReason
from tests.support.trajectories import as_text, make_segment, make_trajectory, trajectories

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(trajectories())
@many
def test_a_record_through_json_gives_the_same_trajectory(trajectory: Trajectory) -> None:
    record = json.loads(json.dumps(trajectory.to_dict(), allow_nan=False))
    assert record["schema_version"] == SCHEMA_VERSION
    assert as_text(Trajectory.from_dict(record)) == as_text(trajectory)


@given(trajectories())
@many
def test_derived_counts_agree_with_the_arrays(trajectory: Trajectory) -> None:
    sampled = [s.weight_versions[s.loss_mask == 1].tolist() for s in trajectory.segments]
    versions = [version for segment in sampled for version in segment]
    assert trajectory.policy_token_count == len(versions)
    assert trajectory.policy_token_count == sum(turn.end - turn.start for turn in trajectory.turns)
    assert trajectory.weight_version_range == ((min(versions), max(versions)) if versions else None)
    assert trajectory.prompt_token_count == sum(turn.start for s in trajectory.segments for turn in s.turns)
    for segment in trajectory.segments:
        assert segment.prompt_length + segment.response_length == len(segment.token_ids)
        assert segment.loss_mask[: segment.prompt_length].sum() == 0


def parts(hint: Any) -> Iterator[type]:
    """The dataclasses that a record of this type is made of."""
    inner, _ = schema.or_none(hint)
    if dataclasses.is_dataclass(inner):
        yield cast(type, inner)
        for part in schema.hints(inner).values():
            yield from parts(part)
    elif get_origin(inner) is list:
        yield from parts(get_args(inner)[0])


def test_the_property_tests_draw_every_field_of_every_part() -> None:
    drawn: dict[tuple[type, str], set[str]] = {
        (cls, name): set() for cls in parts(Trajectory) for name in schema.hints(cls)
    }

    def note(value: Any) -> None:
        if dataclasses.is_dataclass(value):
            for name in schema.hints(type(value)):
                part = getattr(value, name)
                drawn[type(value), name].add(repr(schema.to_plain(part)))
                note(part)
        elif isinstance(value, list):
            for item in value:
                note(item)

    @given(trajectories())
    @settings(many, max_examples=80, database=None, derandomize=True)
    def draw(trajectory: Trajectory) -> None:
        note(trajectory)

    draw()
    assert len(drawn) > 50
    assert [f"{cls.__name__}.{name}" for (cls, name), values in drawn.items() if len(values) < 2] == []


def test_types_are_restored_not_just_values() -> None:
    fault = Fault(FaultKind.USER_SIMULATOR, "Timeout", "no answer in 60 s", True)
    written = make_trajectory(outcome=Outcome.ABORTED, reward=None, fault=fault)
    back = Trajectory.from_dict(json.loads(json.dumps(written.to_dict())))
    assert isinstance(back.outcome, Outcome)
    assert back.fault is not None
    assert isinstance(back.fault.kind, FaultKind)
    assert back.task == written.task
    assert [s.logprobs.dtype for s in back.segments] == [np.float32]
    assert back.reward is None


def test_no_segment_means_nothing_sampled() -> None:
    trajectory = make_trajectory(segments=[])
    assert trajectory.weight_version_range is None
    assert trajectory.oldest_version is None
    assert (trajectory.policy_token_count, trajectory.prompt_token_count, trajectory.turns) == (0, 0, [])


def test_the_oldest_version_is_that_of_what_the_tokens_were_computed_over_where_that_is_known() -> None:
    segment = make_segment(turns=2)  # of versions 0 and 1
    segment.weight_versions[segment.loss_mask == 1] += 3
    assert segment.oldest_version == 3, "files written before do not say more"
    segment.turns[1].prefix_version = 2
    trajectory = make_trajectory(segments=[make_segment(), segment])
    assert (segment.oldest_version, trajectory.oldest_version) == (2, 0)
    trajectory = make_trajectory(segments=[segment])
    assert (trajectory.oldest_version, trajectory.weight_version_range) == (2, (3, 4))
    assert EpisodeSummary.of(trajectory).versions == (2, 4), "what the staleness gate goes by"
    batch = TrajectoryBatch([trajectory, make_trajectory(segments=[make_segment()])])
    for arrays in (batch.padded(), batch.packed()):
        assert arrays.oldest_versions.dtype == np.int32
        assert arrays.oldest_versions.tolist() == [2, 0]


def test_only_calls_that_did_not_parse_count_as_malformed() -> None:
    segment = make_segment(turns=2)
    segment.turns[0].tool_calls = ["ok", "invalid_json"]
    segment.turns[1].tool_calls = ["unknown_tool"]
    assert make_trajectory(segments=[segment]).malformed_call_count == 2


def test_termination_reasons_are_stored_as_they_always_were_and_have_their_outcome() -> None:
    ends = {reason: outcome_of(reason) for reason in map(str, TerminationReason)}
    assert [reason for reason, outcome in ends.items() if outcome is Outcome.COMPLETED] == ["user_stop", "agent_stop"]
    assert [reason for reason, outcome in ends.items() if outcome is Outcome.AGENT_ERROR] == ["agent_error"]
    assert [reason for reason, outcome in ends.items() if outcome is Outcome.ABORTED] == ["cancelled", "fault"]
    limits = ["max_steps", "too_many_errors", "max_turns", "context_length", "response_length", "wall_time"]
    assert [reason for reason, outcome in ends.items() if outcome is Outcome.TRUNCATED] == limits
    assert outcome_of("a limit that a later version of the benchmark has") is Outcome.TRUNCATED
    stored = json.loads(json.dumps(make_trajectory(termination_reason=TerminationReason.MAX_TURNS).to_dict()))
    assert stored["termination_reason"] == "max_turns"
