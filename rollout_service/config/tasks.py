"""Tasks: which τ²-bench tasks a collection draws.

Invariant: task ids go with one domain, never with a mix, since domains use the same ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rollout_service.config.refusal import Refused
from rollout_service.config.section import Section
from rollout_service.config.selection import read_domain, read_ids, read_task_weights
from rollout_service.errors import TaskError
from rollout_service.redaction import shown

SamplerKind = Literal["uniform", "weighted", "pass_rate"]


class Retrieval(NamedTuple):
    """How the agent of `banking_knowledge` searches the documents."""

    variant: str
    """As upstream τ²-bench names it."""
    top_k: int | None = None
    """Results of a search; None: τ²'s default."""


OFFLINE = ("no_knowledge", "full_kb", "golden_retrieval", "bm25", "bm25_grep", "grep_only")
"""Kinds of retrieval that need neither embeddings nor a sandboxed shell."""


class Tasks(Section):
    """Which τ²-bench tasks a collection draws when the call does not say."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    domain: str | dict[str, float] = Field(
        "retail", description="A domain, or a mix {domain: weight}; as text: retail=2,airline=1."
    )
    split: str = Field("base", description="train, test or base; telecom also has small and full.")
    ids: list[str] | None = Field(None, description="Only these task ids, of one domain; null: the whole split.")
    path: str | None = Field(
        None, description="A file of tasks of your own in τ²'s JSON, in place of split base of one domain; null: none."
    )
    exclude: list[str] = Field(
        default_factory=list,
        description="Task ids to leave out, or the path of a file with one id a line; in a mix, domain/id.",
    )
    filter: dict[str, Any] = Field(
        default_factory=dict,
        description="Only tasks whose fields have these values: {dotted field: value, or a list of values}.",
    )
    shuffle: bool = Field(
        True, description="true: draw in a new order each epoch; false: in the order of the split, over and over."
    )
    seed: int = Field(0, description="Seed of the order and of every episode drawn.")
    sampler: SamplerKind = Field(
        "uniform",
        description="How the next task is drawn. uniform: epoch by epoch; weighted: by tasks.weights; pass_rate: tasks "
        "that the policy passes nearly always or nearly never come rarely.",
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="For sampler weighted: weights by domain or by domain/id; 0: never; one that is not named has the "
        "mix's weight, or 1.",
    )
    pass_rate_floor: float = Field(
        0.1,
        gt=0,
        le=1,
        description="For sampler pass_rate: weight of a task that is passed nearly always or nearly never; others have "
        "1.",
    )
    pass_rate_memory: float = Field(
        16, ge=2, le=10_000, description="For sampler pass_rate: number of a task's recent episodes that count."
    )

    retrieval: Literal["no_knowledge", "full_kb", "golden_retrieval", "bm25", "bm25_grep", "grep_only"] = Field(
        "bm25_grep", description="How the agent of banking_knowledge (upstream τ²-bench) searches the documents."
    )
    retrieval_top_k: int | None = Field(
        None, ge=1, description="Results of a search with bm25 or bm25_grep; null: τ²'s default."
    )

    @field_validator("retrieval", mode="before")
    @classmethod
    def _check_offline(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in OFFLINE:
            raise Refused(
                f"is {value!r}, which is unknown or needs embeddings or a sandboxed shell.",
                f"Choose one of {', '.join(OFFLINE)}.",
                "tasks.retrieval",
            )
        return value

    @model_validator(mode="after")
    def _check_top_k(self) -> Self:
        if self.retrieval_top_k is not None and not self.retrieval.startswith("bm25"):
            raise Refused(f"goes with bm25, not with {self.retrieval}.", "Leave it out.", "tasks.retrieval_top_k")
        return self

    @field_validator("domain", "ids", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name == "ids":
            return None
        read = read_domain if info.field_name == "domain" else read_ids
        try:
            return read(value, f"tasks.{info.field_name}")
        except TaskError as error:
            raise Refused(error.problem, error.remedy, f"tasks.{info.field_name}") from error

    @field_validator("weights", mode="before")
    @classmethod
    def _read_weights(cls, value: Any) -> Any:
        if value == {}:
            return value
        try:
            return read_task_weights(value, "tasks.weights")
        except TaskError as error:
            raise Refused(error.problem, error.remedy, "tasks.weights") from error

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith(".json"):
            raise Refused(f"is {shown(value)}.", "Name a file that ends in .json.", "tasks.path")
        return None if value is None else str(Path(value).expanduser().absolute())

    @field_validator("exclude", mode="before")
    @classmethod
    def _read_excluded(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                text = Path(value).expanduser().read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise Refused(
                    f"names a file that cannot be read: {error}.", "Give a list of ids, or correct it.", "tasks.exclude"
                ) from error
            lines = [line.strip() for line in text.splitlines()]
            value = [line for line in lines if line and not line.startswith("#")]
        if value == []:
            return value
        try:
            return read_ids(value, "tasks.exclude")
        except TaskError as error:
            raise Refused(error.problem, error.remedy, "tasks.exclude") from error

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if self.path is not None and (len(self.domains) > 1 or self.split != "base"):
            raise Refused(
                "goes with one domain, and without a split.", "Set tasks.domain to the file's domain.", "tasks.path"
            )
        return self

    @model_validator(mode="after")
    def _check_excluded(self) -> Self:
        plain = [task_id for task_id in self.exclude if task_id.partition("/")[0] not in self.domains]
        if plain and len(self.domains) > 1:
            raise Refused(
                f"has {plain[0]!r}, and tasks.domain is a mix.", "Write each one as domain/id.", "tasks.exclude"
            )
        return self

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        if len(self.domains) > 1 and self.ids is not None:
            raise Refused("goes with one domain, not with a mix.", "Leave out one of them.", "tasks.ids")
        return self

    @property
    def domains(self) -> list[str]:
        """The domain, or those of the mix."""
        return [self.domain] if isinstance(self.domain, str) else list(self.domain)

    @property
    def chosen_split(self) -> str:
        """The split, or the file of tasks that takes its place."""
        return self.path or self.split

    def excluded(self, domain: str) -> set[str]:
        """Ids that are left out of this domain."""
        found = set()
        for entry in self.exclude:
            prefix, _, rest = entry.partition("/")
            if prefix in self.domains:
                found |= {rest} if prefix == domain else set()
            elif domain in self.domains:
                found.add(entry)
        return found

    @property
    def searched(self) -> Retrieval:
        """How the agent searches, in the one domain where it can."""
        return Retrieval(self.retrieval, self.retrieval_top_k)
