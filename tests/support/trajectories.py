"""Valid trajectories: a plain builder, and hypothesis strategies.

Segments are made by the ledger, as the service makes them, so masks, log-probs and versions are aligned by the same
code that aligns them in production.
"""

import dataclasses
import json
import typing
from enum import StrEnum
from typing import Any

import numpy as np
from hypothesis import strategies as st

from rollout_service.errors import Fault
from rollout_service.policy.base import Generation
from rollout_service.record import schema
from rollout_service.record.ledger import TokenLedger
from rollout_service.record.trajectory import (
    Outcome,
    Provenance,
    TaskRef,
    Timing,
    TokenSegment,
    Trajectory,
    Turn,
    UserUsage,
)

TOKEN = st.integers(0, 2**31 - 1)
SMALL_COUNT = st.integers(0, 2**31 - 1)
SECONDS = st.floats(0, 1e6)
NAME = st.text(max_size=8)
FREE_TEXT = st.text(st.characters(), max_size=12)
"""Any code points, lone surrogates among them: what a JSON string can say."""


def make_generation(length: int = 4, version: int = 0, seed: int = 0, finish_reason: str = "stop") -> Generation:
    random = np.random.default_rng(seed)
    return Generation(
        token_ids=random.integers(0, 150_000, length, dtype=np.int32),
        logprobs=-random.exponential(1.0, length).astype(np.float32),
        weight_versions=np.full(length, version, dtype=np.int32),
        finish_reason=finish_reason,
    )


def make_segment(turns: int = 2, turn_length: int = 4, seed: int = 0) -> TokenSegment:
    """A prompt of 3 tokens, then `turns` times sampled tokens, with 2 of context between them."""
    ledger = TokenLedger([1, 2, 3])
    for turn in range(turns):
        ledger.append_policy(
            make_generation(turn_length, version=turn, seed=seed + turn), tool_calls=["ok"], seconds=0.5
        )
        ledger.append_context([4, 5])
    return ledger.to_segment()


def make_member(group: int, sample: int, **overrides: Any) -> Trajectory:
    """The trajectory with this sample index in the group of this number."""
    return make_trajectory(trajectory_id=f"{group}-{sample}", group_id=str(group), sample_index=sample, **overrides)


def make_trajectory(**overrides: Any) -> Trajectory:
    """A completed retail episode of two turns with reward 1; any field can be given."""
    fields: dict[str, Any] = {
        "trajectory_id": "trajectory-0",
        "collection_id": "collection-0",
        "group_id": "group-0",
        "sample_index": 0,
        "task": TaskRef("retail", "train", "17", 3),
        "seed": 7,
        "attempt": 1,
        "outcome": Outcome.COMPLETED,
        "termination_reason": "user_stop",
        "reward": 1.0,
        "messages": [{"role": "user", "content": "Where is my order?", "tool_calls": None}],
        "reward_info": {"reward": 1.0, "db_check": {"db_match": True}},
        "database_hashes": {"assistant": "c0ffee", "user": None},
        "timing": Timing(queue_seconds=0.5, policy_seconds=1.0, user_seconds=2.0),
        "user_usage": UserUsage(prompt_tokens=100, completion_tokens=20, cost_usd=0.25, requests=2),
        "provenance": Provenance(model="scripted", sampling={"temperature": 1.0}),
    }
    if "segments" not in overrides:
        fields["segments"] = [make_segment()]
    return Trajectory(**fields | overrides)


def as_text(trajectory: Trajectory) -> str:
    """Text that differs whenever two trajectories do, be it in the sign of a zero or in 1 against True."""
    return json.dumps(trajectory.to_dict())


def _plain(value: Any) -> Any:
    """`value` as JSON would give it back; it only joins surrogate pairs, which JSON cannot keep apart."""
    return json.loads(json.dumps(value))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | FREE_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FREE_TEXT, inner, max_size=3),
    max_leaves=6,
).map(_plain)
JSON_OBJECTS = st.dictionaries(FREE_TEXT, JSON_VALUES, max_size=3).map(_plain)


@st.composite
def generations(draw: st.DrawFn) -> Generation:
    length = draw(st.integers(1, 5))
    logprob = st.floats(-3e38, 0.0)  # of `width=32` hypothesis draws many that it has to reject
    return Generation(
        token_ids=np.array(draw(st.lists(TOKEN, min_size=length, max_size=length)), dtype=np.int32),
        logprobs=np.array(draw(st.lists(logprob, min_size=length, max_size=length)), dtype=np.float32),
        weight_versions=np.array(draw(st.lists(SMALL_COUNT, min_size=length, max_size=length)), dtype=np.int32),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        cached_tokens=draw(SMALL_COUNT),
    )


def token_lists(min_size: int = 0) -> st.SearchStrategy[list[int]]:
    return st.lists(TOKEN, min_size=min_size, max_size=5)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """What a field of this type may hold, unless its name has a strategy of its own below."""
    inner, may_be_none = schema.or_none(hint)
    if may_be_none:
        return st.none() | values(inner)
    if dataclasses.is_dataclass(inner):
        return drawn(inner)
    if typing.get_origin(inner) is list:
        return st.lists(values(typing.get_args(inner)[0]), max_size=3)
    if typing.get_origin(inner) is dict:
        return JSON_OBJECTS
    if issubclass(inner, StrEnum):
        return st.sampled_from(inner)
    return {str: NAME, int: SMALL_COUNT, float: SECONDS, bool: st.booleans()}[inner]


OWN: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (Trajectory, "group_id"): st.sampled_from(["a", "b", "c"]),
    (Trajectory, "sample_index"): st.integers(0, 7),
    (Trajectory, "seed"): st.integers(-(2**63), 2**63 - 1),
    (Trajectory, "reward"): st.none() | st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    (Trajectory, "database_hashes"): st.dictionaries(st.sampled_from(["assistant", "user"]), st.none() | NAME),
    (UserUsage, "prompt_tokens"): st.integers(0, 2**40),
    (Fault, "message"): FREE_TEXT.map(_plain),
    (Fault, "traceback"): st.none() | FREE_TEXT.map(_plain),
}
"""Strategies of fields that are narrower or wider than their type."""


def drawn(cls: Any) -> st.SearchStrategy[Any]:
    """Instances of a dataclass with every field drawn over what its type allows: a new field needs nothing here."""
    if cls is TokenSegment:
        return segments()
    fields = schema.hints(cls).items()
    return st.builds(cls, **{n: OWN[cls, n] if (cls, n) in OWN else values(hint) for n, hint in fields})


@st.composite
def segments(draw: st.DrawFn) -> TokenSegment:
    ledger = TokenLedger(draw(token_lists(min_size=1)))
    for generation in draw(st.lists(generations(), min_size=1, max_size=3)):
        turn = ledger.append_policy(generation, draw(st.lists(NAME, max_size=2)), draw(SECONDS))
        for name, hint in schema.hints(Turn).items():
            if name not in ("start", "end", "finish_reason", "cached_tokens", "tool_calls", "policy_seconds"):
                setattr(turn, name, draw(values(hint)))
        ledger.append_context(draw(token_lists()))
    return ledger.to_segment()


def trajectories() -> st.SearchStrategy[Trajectory]:
    """Trajectories with every field of every part drawn."""
    return drawn(Trajectory)


def unlike_any_default(hint: Any, number: int = 3) -> Any:
    """A value of a type that is nobody's default: in a dataclass every field has such a one, and no two are alike."""
    inner, _ = schema.or_none(hint)
    if dataclasses.is_dataclass(inner):
        parts = schema.hints(inner).items()
        return inner(**{name: unlike_any_default(part, number * 20 + at) for at, (name, part) in enumerate(parts)})
    if (dtype := schema.array_dtype(inner)) is not None:
        return np.array([number % 100, 1], dtype=dtype)
    if typing.get_origin(inner) is list:
        return [unlike_any_default(typing.get_args(inner)[0], number + at) for at in range(2)]
    if typing.get_origin(inner) is dict:
        return {f"key {number}": f"text {number}"}
    if issubclass(inner, StrEnum):
        return list(inner)[-1]
    return {str: f"text {number}", int: number, float: number + 0.25, bool: True}[inner]


def without_times(trajectory: Trajectory) -> dict[str, Any]:
    """All of a trajectory but its times."""
    record = trajectory.to_dict()
    del record["timing"], record["started"]
    for segment in record["segments"]:
        for turn in segment["turns"]:
            del turn["policy_seconds"], turn["queue_seconds"]
    record["messages"] = [{k: v for k, v in message.items() if k != "timestamp"} for message in record["messages"]]
    return record
