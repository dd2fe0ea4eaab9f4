"""The classes that slime's hooks take and return: slime's own if it is installed, otherwise ones of the same shape.

Invariant: slime is imported only when one of its hooks runs, and the fields that this package sets on a sample have the
same name and type in both. Shapes: slime 0.3.1, `slime/utils/types.py`, `slime/rollout/base_types.py` and
`slime/rollout/filter_hub/base_types.py`. (The package `slime` on PyPI is another program; it lacks these modules.)
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple


class Status(Enum):
    """State of a sample, with slime's values."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass
class PrefixCacheInfo:
    """Prompt tokens over all turns, and how many of them the engine had cached."""

    cached_tokens: int = 0
    total_prompt_tokens: int = 0


@dataclass
class Sample:
    """The fields of slime's `Sample` that this package reads and sets."""

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    prompt: str | list[dict[str, str]] = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: str | None = None
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None
    weight_versions: list[str] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None
    remove_sample: bool = False
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    train_metadata: dict[str, Any] | None = None
    session_id: str | None = None
    non_generation_time: float = 0.0
    prefix_cache_info: PrefixCacheInfo = field(default_factory=PrefixCacheInfo)

    def to_dict(self) -> dict[str, Any]:
        """Its fields, with plain values for the status and the cache."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return values | {"status": self.status.value, "prefix_cache_info": vars(self.prefix_cache_info).copy()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Sample:
        """The inverse of `to_dict`."""
        cache = PrefixCacheInfo(**values["prefix_cache_info"])
        return cls(**values | {"status": Status(values["status"]), "prefix_cache_info": cache})


@dataclass
class TrainOutput:
    """slime's `RolloutFnTrainOutput`."""

    samples: list[list[Any]]
    """By prompt, then by episode. There is a third level if an episode gives several samples."""
    metrics: dict[str, Any] | None = None


@dataclass
class EvalOutput:
    """slime's `RolloutFnEvalOutput`."""

    data: dict[str, dict[str, Any]]
    """By data set: `rewards`, `truncated` and `samples`, one entry per scored episode."""
    metrics: dict[str, Any] | None = None


@dataclass
class FilterOutput:
    """slime's `DynamicFilterOutput`."""

    keep: bool
    reason: str | None = None
    keep_when_insufficient: bool = False


class Types(NamedTuple):
    """One class for each role."""

    sample: type[Any]
    train_output: type[Any]
    eval_output: type[Any]
    filter_output: type[Any]


@functools.cache
def types() -> Types:
    """slime's classes, or those above if slime is not installed."""
    try:
        from slime.rollout.base_types import RolloutFnEvalOutput, RolloutFnTrainOutput
        from slime.rollout.filter_hub.base_types import DynamicFilterOutput
        from slime.utils.types import Sample as SlimeSample
    except ImportError:
        return Types(Sample, TrainOutput, EvalOutput, FilterOutput)
    return Types(SlimeSample, RolloutFnTrainOutput, RolloutFnEvalOutput, DynamicFilterOutput)
