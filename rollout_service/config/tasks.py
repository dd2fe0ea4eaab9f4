"""Tasks: which τ²-bench tasks a collection draws.

Invariant: task ids go with one domain, never with a mix, since domains use the same ids.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rollout_service.config.refusal import Refused
from rollout_service.config.section import Section
from rollout_service.config.selection import read_domain, read_ids
from rollout_service.errors import TaskError


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
    shuffle: bool = Field(
        True, description="true: draw in a new order each epoch; false: in the order of the split, over and over."
    )
    seed: int = Field(0, description="Seed of the order and of every episode drawn.")

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
    def searched(self) -> Retrieval:
        """How the agent searches, in the one domain where it can."""
        return Retrieval(self.retrieval, self.retrieval_top_k)
