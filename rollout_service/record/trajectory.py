"""The trajectory: the versioned public schema of one episode's record.

Invariant: the record is the same in memory, in Parquet, in JSONL and between processes. A token is stored once, in the
segment in which the engine saw it. Everything that can be derived is a property and is never stored.

All arrays of a segment have the same length n and are aligned: position i of each describes token i.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

import rollout_service.record.schema as schema
from rollout_service.errors import Fault
from rollout_service.record.cost import total
from rollout_service.record.turn_facts import TurnFacts
from rollout_service.task_ref import TaskRef as TaskRef  # a part of the trajectory, so offered here too
from rollout_service.termination import TerminationReason

SCHEMA_VERSION = 2
"""Raised whenever a reader of the version before would misread a record."""

CONTEXT_VERSION = -1
"""Weight version of a context token: no weights sampled it."""


REVIEW_NAMES = (
    "hallucination",
    "incorrect_interpretation",
    "guideline_violation",
    "revealed_info_early",
    "inconsistent_behavior",
    "premature_termination",
    "missed_required_action",
    "wrong_sequence",
    "other",
    "critical_helped",
    "critical_hindered",
    "minor",
)
"""The tags and the severities of errors that τ²'s reviewer of the user simulator knows."""


class Outcome(StrEnum):
    """How an episode ended."""

    COMPLETED = "completed"
    """The conversation ended by its own rules, and the evaluator scored it."""
    TRUNCATED = "truncated"
    """A limit was reached. `termination_reason` says which."""
    AGENT_ERROR = "agent_error"
    """The policy broke the protocol: an empty turn, or text where only tool calls are allowed."""
    ABORTED = "aborted"
    """A fault or a cancellation stopped it. It has no reward."""


_OUTCOMES: dict[str, Outcome] = {
    TerminationReason.USER_STOP: Outcome.COMPLETED,
    TerminationReason.AGENT_STOP: Outcome.COMPLETED,
    TerminationReason.AGENT_ERROR: Outcome.AGENT_ERROR,
    TerminationReason.CANCELLED: Outcome.ABORTED,
    TerminationReason.FAULT: Outcome.ABORTED,
}


def outcome_of(termination_reason: str) -> Outcome:
    """The outcome of an episode with this termination reason. Every reason without an entry above is a limit."""
    return _OUTCOMES.get(termination_reason, Outcome.TRUNCATED)


@dataclass(slots=True)
class Turn:
    """One policy generation. Its prompt is `token_ids[:start]` of its segment."""

    start: int
    """First sampled token's position in the segment."""
    end: int
    """One past the last sampled token's position."""
    finish_reason: str
    """`stop` or `length`, as the engine said."""
    cached_tokens: int = 0
    """Prompt tokens that the engine took from its prefix cache."""
    message_index: int | None = None
    """Position in `Trajectory.messages` of the message that these tokens became; None: the episode ended before."""
    tool_calls: list[str] = field(default_factory=list)
    """Parse status of each tool call, in order: `ok`, or why it is malformed."""
    policy_seconds: float = 0.0
    """Seconds from sending the prompt to receiving the tokens."""
    prefix_version: int | None = field(default=None, metadata=schema.ADDED)
    """Oldest version of the weights that computed keys and values which these tokens attended to. It is at most the
    oldest version that sampled one of them, and lower if an `in_place` update came after the episode's cache began.
    None: not known, as with engines that others serve and update."""
    unknown_tokens: int = field(default=0, metadata=schema.ADDED)
    """Sampled ids for which the tokenizer has no token, and so no text. They are rows that pad the model's head."""
    queue_seconds: float | None = field(default=None, metadata=schema.ADDED)
    """Seconds of `policy_seconds` that the turn waited at its replica and in the engine's queue, before it was sampled
    and, after an interruption, before it went on. Measured where it waited, by one clock. The way to the replica is not
    in it. None: not known."""
    facts: TurnFacts = field(default_factory=TurnFacts, metadata=schema.ADDED)
    """What the turn did, for credit per turn. The reward knows nothing of it."""


@dataclass(slots=True, eq=False)
class TokenSegment:
    """Tokens that the engine saw and sampled, in one append-only sequence."""

    token_ids: npt.NDArray[np.int32]
    """int32[n]."""
    loss_mask: npt.NDArray[np.uint8]
    """uint8[n]: 1 exactly on tokens that the policy sampled in this segment."""
    logprobs: npt.NDArray[np.float32]
    """float32[n]: the engine's log-prob of each sampled token; 0.0 where the mask is 0."""
    weight_versions: npt.NDArray[np.int32]
    """int32[n]: version of the weights that sampled the token; -1 where the mask is 0."""
    prompt_length: int
    """Tokens before the first turn."""
    turns: list[Turn]

    @property
    def response_length(self) -> int:
        """Tokens after the prompt, policy and context alike."""
        return len(self.token_ids) - self.prompt_length

    @property
    def policy_token_count(self) -> int:
        """Tokens that the policy sampled."""
        return int(self.loss_mask.sum())

    @property
    def oldest_version(self) -> int | None:
        """Oldest weight version that sampled a token of the segment or, as far as known, computed keys and values which
        one attended to. None: nothing was sampled."""
        sampled = self.weight_versions[self.loss_mask == 1]
        if not len(sampled):
            return None
        prefixes = [turn.prefix_version for turn in self.turns if turn.prefix_version is not None]
        return min([int(sampled.min()), *prefixes])

    def oldest_version_of(self, turn: Turn) -> int:
        """`oldest_version` of one of the segment's turns."""
        sampled = int(self.weight_versions[turn.start : turn.end].min())
        return sampled if turn.prefix_version is None else min(sampled, turn.prefix_version)


@dataclass(slots=True)
class Timing:
    """Where an episode's wall time went, in seconds."""

    queue_seconds: float = 0.0
    """Seconds from the collection's request to the start of this attempt."""
    policy_seconds: float = 0.0
    """Seconds spent waiting for the policy."""
    user_seconds: float = 0.0
    """Seconds spent waiting for the user simulator."""
    environment_seconds: float = 0.0
    """Seconds for construction, tools, orchestration and tokenization: the rest of the episode."""
    evaluation_seconds: float = 0.0
    """Seconds for scoring."""

    @property
    def episode_seconds(self) -> float:
        """Wall time of the attempt without the queue."""
        return self.policy_seconds + self.user_seconds + self.environment_seconds + self.evaluation_seconds

    def add(self, other: Timing) -> None:
        """Add another episode's seconds."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(slots=True)
class UserUsage:
    """What the user simulator consumed over the episode. An unusable answer counts if the API reported its usage."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    """US dollars; None: the model's price is not known, which is not the same as free."""
    requests: int = 0
    """Requests sent, retries included."""
    failed_requests: int = 0
    """Requests that failed and were retried."""


@dataclass(slots=True)
class JudgeUsage(UserUsage):
    """What the judge of NL assertions or the reviewer of the user consumed, counted as for the user simulator."""


@dataclass(slots=True)
class UserReview:
    """What τ²'s own reviewer, a language model, says of the user simulator's part. It never changes the reward."""

    model: str
    review: dict[str, Any] | None
    """τ²'s `UserOnlyReview`: `errors`, each with `error_tags`, `severity`, `turn_idx` and `reasoning`, and a `summary`.
    None: the reviewer failed, and `problem` says how."""
    problem: str = ""
    usage: JudgeUsage = field(default_factory=JudgeUsage)

    @property
    def found(self) -> list[str] | None:
        """Each tag and each severity among the errors once, in order of appearance. None: there is no review."""
        if self.review is None:
            return None
        names = []
        for error in self.review.get("errors") or []:
            names += [tag if tag in REVIEW_NAMES else "other" for tag in error.get("error_tags") or ["other"]]
            names += [severity] if (severity := error.get("severity")) in REVIEW_NAMES else []
        return list(dict.fromkeys(names))


@dataclass(slots=True)
class Provenance:
    """What made the trajectory: enough to make it again and to detect a mismatch."""

    model: str = ""
    tokenizer: str = ""
    """Name or path of the tokenizer; `embedded`: the one that ships with the package."""
    tokenizer_fingerprint: str = ""
    """Hash of vocabulary, merges and added tokens."""
    tokenizer_size: int | None = field(default=None, metadata=schema.ADDED)
    """One past the tokenizer's largest id."""
    model_vocabulary_size: int | None = field(default=None, metadata=schema.ADDED)
    """Rows of the model's embedding, padding included; None: not known."""
    template_fingerprint: str = ""
    """Hash of the chat template."""
    history: str = "append"
    """`append` or `template`, see `rollout_service.chat.transcript`."""
    tool_parser: str = field(default="auto", metadata=schema.ADDED)
    """What read the tool calls: `learned`, `harmony`, or the name of a `renderers` parser; `auto`: found by trying."""
    template_arguments: dict[str, Any] = field(default_factory=dict, metadata=schema.ADDED)
    """What the chat template was given beside messages and tools, such as `enable_thinking`."""
    template_date: str = field(default="", metadata=schema.ADDED)
    """The date that the chat template wrote where it asked for today's, as 2026-01-31; empty: none, or not recorded."""
    greeting: str = field(default="kept", metadata=schema.ADDED)
    """`kept`, or `left_out` where the chat template has no place for an assistant that speaks first: the messages then
    begin with a greeting that the prompts lack."""
    sampling: dict[str, Any] = field(default_factory=dict)
    agent: str = "llm"
    user: str = "scripted"
    """`scripted`, `dummy`, or the user simulator's model name."""
    evaluation: str = "all"
    """τ²'s evaluation type."""
    evaluator: str = field(default="", metadata=schema.ADDED)
    """What scored this trajectory: `official` or `fast`; empty: nothing did."""
    task_hash: str = field(default="", metadata=schema.ADDED)
    """Hash of what the task asked for and of how it was scored; empty: not recorded."""
    retrieval: dict[str, Any] = field(default_factory=dict, metadata=schema.ADDED)
    """How the agent searched documents, `variant` and `top_k`, in the domain where it can; empty elsewhere."""
    domain_hash: str = field(default="", metadata=schema.ADDED)
    """Hash of the text of the domain's policy and of the agent's tools; empty: not recorded."""
    user_arguments: dict[str, Any] = field(default_factory=dict, metadata=schema.ADDED)
    """What the user simulator's model was given beside messages and tools, such as `temperature`; empty also if it was
    not recorded, or if no model plays the user."""
    limits: dict[str, Any] = field(default_factory=dict, metadata=schema.ADDED)
    """`max_steps` and `max_errors` as τ² counts them, and `max_turns`; empty: not recorded."""
    tau2_distribution: str = ""
    tau2_version: str = ""
    service_version: str = ""


@dataclass(slots=True, eq=False)
class Trajectory:
    """The record of one episode."""

    trajectory_id: str
    collection_id: str
    group_id: str
    sample_index: int
    """Position within the group, from 0."""
    task: TaskRef
    seed: int
    attempt: int
    """Number of the attempt, from 1. An infrastructure fault is retried under the same identity."""
    outcome: Outcome
    termination_reason: str
    """A value of `TerminationReason`, or a further reason of τ²'s own, as τ² names it."""
    reward: float | None
    """The official evaluator's reward. None: the episode was not scored, which is not the same as 0. A fault or the
    wall time ended it, or the policy never took a turn."""
    segments: list[TokenSegment] = field(default_factory=list)
    """One segment, or more if the chat template rewrites history."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """τ²'s messages in order, including the user simulator's own tool calls, without providers' raw answers."""
    reward_info: dict[str, Any] | None = None
    """The official `RewardInfo` with every component and check."""
    fault: Fault | None = None
    database_hashes: dict[str, str | None] = field(default_factory=dict)
    """τ²'s own hashes of the final databases, `assistant` and `user`; None: the domain has no such database."""
    started: str = field(default="", metadata=schema.ADDED)
    """When this attempt began, in UTC, as 2026-01-31T09:00:00.000000+00:00; empty: not recorded."""
    timing: Timing = field(default_factory=Timing)
    user_usage: UserUsage = field(default_factory=UserUsage)
    user_flaws: dict[str, Any] | None = field(default=None, metadata=schema.ADDED)
    """What heuristics found wrong with the user simulator's part: by the name of each flaw that there is, the positions
    in `messages` that show it, see `rollout_service.record.user_flaws`. None: nobody looked. The reward knows nothing
    of it."""
    user_review: UserReview | None = field(default=None, metadata=schema.ADDED)
    """What τ²'s reviewer says of the user simulator. None: the episode was not among those that are reviewed."""
    judge_usage: JudgeUsage | None = field(default=None, metadata=schema.ADDED)
    """None: no judge was asked, or the record is of a version that did not count it."""
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def turns(self) -> list[Turn]:
        """Every turn of every segment, in order."""
        return [turn for segment in self.segments for turn in segment.turns]

    @property
    def is_scored(self) -> bool:
        """Whether there is a reward that says something about the policy. False also if the policy never took a turn:
        files of older versions have a reward then, too."""
        return self.reward is not None and any(segment.turns for segment in self.segments)

    @property
    def model_usages(self) -> list[UserUsage]:
        """What each language model that the episode asked consumed, other than the policy."""
        review = None if self.user_review is None else self.user_review.usage
        return [usage for usage in (self.user_usage, self.judge_usage, review) if usage is not None]

    @property
    def cost_usd(self) -> float | None:
        """US dollars of the user simulator, the judge and the reviewer; None: not known. Answers that a tape replayed
        count with what they cost when they were recorded."""
        return total(usage.cost_usd for usage in self.model_usages)

    @property
    def policy_token_count(self) -> int:
        """Tokens that the policy sampled, over all segments."""
        return sum(segment.policy_token_count for segment in self.segments)

    @property
    def prompt_token_count(self) -> int:
        """Tokens that were sent to the engine, summed over turns, cached ones included."""
        return sum(turn.start for turn in self.turns)

    @property
    def cached_token_count(self) -> int:
        """The sent tokens that the engine took from its prefix cache."""
        return sum(turn.cached_tokens for turn in self.turns)

    @property
    def malformed_call_count(self) -> int:
        """Tool calls that could not be parsed."""
        return sum(status != "ok" for turn in self.turns for status in turn.tool_calls)

    @property
    def unknown_token_count(self) -> int:
        """Sampled ids for which the tokenizer has no token."""
        return sum(turn.unknown_tokens for turn in self.turns)

    @property
    def weight_version_range(self) -> tuple[int, int] | None:
        """Oldest and newest weight version that sampled a token; None: nothing was sampled."""
        versions = [s.weight_versions[s.loss_mask == 1] for s in self.segments if s.policy_token_count]
        if not versions:
            return None
        sampled = np.concatenate(versions)
        return int(sampled.min()), int(sampled.max())

    @property
    def oldest_version(self) -> int | None:
        """The oldest version of all segments, from which staleness is counted; see `TokenSegment.oldest_version`."""
        versions = [segment.oldest_version for segment in self.segments]
        return min((version for version in versions if version is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON values with the schema version; arrays become lists."""
        record: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        return record | schema.to_plain(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Trajectory:
        """The inverse of `to_dict`; arrays may replace lists. The caller checks `schema_version`, see
        `rollout_service.record.storage`.

        Raises:
            ValueError: a field is missing, unknown, or not of its type. The text has its path.
        """
        values = {name: value for name, value in record.items() if name != "schema_version"}
        trajectory: Trajectory = schema.from_plain(cls, values)
        return trajectory

    def check_types(self) -> None:
        """Check that every field is of its type, as after reading.

        Raises:
            ValueError: names the field, its value and its type.
        """
        schema.from_plain(Trajectory, self)
