"""What requests to the gateway hold, for the server and for its OpenAPI description.

Invariant: an unknown field is refused, and a collection's fields are those of `CollectionRequest`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, with_config

from rollout_service.collecting.evaluating import MOST_TRIALS, NO_LIMIT, SEED, SELECTION, asked_for
from rollout_service.collecting.request import CollectionRequest
from rollout_service.config import RolloutConfig
from rollout_service.config.budget import Budget
from rollout_service.config.sampling import Sampling
from rollout_service.config.tasks import SamplerKind
from rollout_service.policy.weights import UpdateMode

_STRICT = ConfigDict(extra="forbid")


@with_config(_STRICT)
@dataclasses.dataclass(frozen=True)
class CollectionBody(CollectionRequest):
    """A request for episodes. A field that is left out takes the service's own setting."""

    def request(self, sampling: Sampling) -> CollectionRequest:
        """The request, with sampling settings that it leaves out as in `sampling`, the service's."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(CollectionRequest)}
        if self.sampling is not None:
            given = {name: getattr(self.sampling, name) for name in self.sampling.model_fields_set}
            fields["sampling"] = sampling.model_copy(update=given)
        return CollectionRequest(**fields)


@with_config(_STRICT)
@dataclasses.dataclass(frozen=True)
class EvaluationBody:
    """A request for an evaluation. A field that is left out takes the service's own setting."""

    trials: Annotated[
        int, Field(ge=1, le=MOST_TRIALS, description="Episodes of each task; pass^k is given up to this k.")
    ] = 1
    tasks: Annotated[int | None, Field(ge=1, description="Only so many tasks; null: every task.")] = None
    domain: str | dict[str, float] | None = None
    split: str | None = None
    ids: list[str] | None = None
    seed: Annotated[int, Field(description="The same seed gives the same tasks and episode seeds.")] = SEED
    sampling: Sampling | None = None
    max_turns: Annotated[
        int, Field(ge=1, description="Most policy turns of an episode. Default: more than τ²'s max_steps allows.")
    ] = NO_LIMIT
    max_attempts: int | None = None
    weight: float | None = None
    budget: Budget | None = None

    def request(self, sampling: Sampling) -> CollectionRequest:
        """The request for its episodes, see `CollectionBody.request`."""
        selection = {name: getattr(self, name) for name in SELECTION}
        return CollectionBody(**asked_for(self.trials, self.tasks, selection)).request(sampling)


@with_config(_STRICT)
@dataclasses.dataclass(frozen=True)
class SamplerBody:
    """A sampler of tasks, by the selection that it draws from, and what is to be changed of it. A field of the
    selection that is left out takes the service's own setting."""

    domain: str | dict[str, float] | None = None
    split: str | None = None
    ids: list[str] | None = None
    shuffle: bool | None = None
    sampler: SamplerKind | None = None
    state: Annotated[dict[str, Any] | None, Field(description="Go on from here; null: from where it is.")] = None
    weights: Annotated[
        dict[str, float] | None,
        Field(description="For sampler weighted: by domain, or by domain/id; null: as they are."),
    ] = None

    @property
    def request(self) -> CollectionRequest:
        """A request for a collection that draws from it."""
        return CollectionRequest(
            domain=self.domain, split=self.split, ids=self.ids, shuffle=self.shuffle, sampler=self.sampler
        )


_REQUEST = TypeAdapter(CollectionRequest)
_DEFAULTS = {item.name: item.default for item in dataclasses.fields(CollectionRequest)}


def to_body(request: CollectionRequest) -> dict[str, Any]:
    """The request as JSON values, from which `CollectionBody` is read. What is left at its default is left out: a
    gateway of an older release refuses fields that it does not know."""
    values = _REQUEST.dump_python(request, mode="json")
    return {name: value for name, value in values.items() if value != _DEFAULTS[name]}


def settings_of(config: RolloutConfig) -> dict[str, Any]:
    """The settings as JSON values, without what was left at its default and without names and passwords in URLs."""
    settings: dict[str, Any] = _without_passwords(config.model_dump(mode="json", exclude_unset=True))
    return settings


def _without_passwords(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_passwords(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_without_passwords(below) for below in value]
    return _USER_INFO.sub(r"\1", value) if isinstance(value, str) else value


_USER_INFO = re.compile(r"^(\w[\w+.-]*://).*@")


class AcknowledgeBody(BaseModel):
    """What a reader has."""

    model_config = _STRICT
    number: Annotated[int, Field(ge=0, description="The groups up to this number are let go.")] = 0
    also: Annotated[
        list[Annotated[int, Field(ge=1)]],
        Field(max_length=1024, description="Numbers of further groups that are let go, whatever comes before them."),
    ] = []
    dropped: Annotated[
        list[Annotated[int, Field(ge=1)]],
        Field(
            max_length=1024,
            description="Numbers of groups that the reader does not keep: others take their places. Only in a "
            "collection with `keep: reader`. Whoever asks for a further group keeps those before it, so read it with "
            "`limit=1`.",
        ),
    ] = []


class WeightsBody(BaseModel):
    """New weights for every replica."""

    model_config = _STRICT
    path: Annotated[
        str, Field(min_length=1, description="Checkpoint folder in Hugging Face format, as the replicas' nodes see it.")
    ]
    version: Annotated[int | None, Field(description="Larger than all before; null: the next one.")] = None
    mode: UpdateMode = "abort_and_resume"


class PauseBody(BaseModel):
    """How the replicas stop."""

    model_config = _STRICT
    mode: UpdateMode = "abort_and_resume"


class ClientBody(BaseModel):
    """A client of its collections."""

    model_config = _STRICT
    client: Annotated[str, Field(min_length=1, max_length=200, description="The id that it gave to its collections.")]
