"""The contract between an episode and the policy that samples its turns.

Invariant: a `Generation`'s three arrays are aligned and come from the engine together. No layer between the engine
and the ledger decodes, trims or re-encodes them. Every number that reaches an engine is within the range that all
engines support: `Sampling` checks the limits that need no model, `check_request` those that do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeFault, FaultKind
from rollout_service.task_ref import TaskRef


class RequestError(ValueError):
    """The engine cannot meet the request, now or later. The message names the field."""

    retryable = False


def check_request(
    input_ids: npt.NDArray[np.int32], sampling: Sampling, *, vocabulary: int, context_length: int
) -> None:
    """Check that the model can answer a request, before the engine is given it.

    Args:
        input_ids: int32[n], the prompt.
        vocabulary: rows of the model's embedding.
        context_length: tokens that the engine takes, prompt and turn together.

    Raises:
        RequestError: no input, more tokens than the engine takes, or an id that is not in the vocabulary, which would
            crash some engines with every turn that they run.
    """
    if not len(input_ids):
        raise RequestError("input_ids is empty: give one id at least")
    check_ids(input_ids, vocabulary, "input_ids")
    check_ids(sampling.stop_token_ids, vocabulary, "stop_token_ids")
    if len(input_ids) + sampling.max_new_tokens > context_length:
        raise RequestError(
            f"{len(input_ids)} input_ids and max_new_tokens of {sampling.max_new_tokens} are more than the context of "
            f"{context_length} tokens"
        )


def check_ids(ids: npt.ArrayLike, vocabulary: int, field: str) -> None:
    """Check that token ids are among the model's, which are 0 to `vocabulary` - 1.

    Raises:
        RequestError: one is not. The message names the field.
    """
    given = np.asarray(ids, dtype=np.int64)
    unknown = given[(given < 0) | (given >= vocabulary)]
    if len(unknown):
        raise RequestError(f"{field} has {unknown[0]}; the model's ids are 0 to {vocabulary - 1}")


@dataclass(slots=True, eq=False)
class Generation:
    """What the engine sampled for one turn."""

    token_ids: npt.NDArray[np.int32]
    """int32[m], including the stop token if there was one."""
    logprobs: npt.NDArray[np.float32]
    """float32[m], natural log, of the sampled tokens under softmax(logits / temperature): before top-p and top-k."""
    weight_versions: npt.NDArray[np.int32]
    """int32[m], the version of the weights that sampled each token."""
    finish_reason: str
    """`stop` or `length`. Engines also give `abort`, for a turn that was interrupted, see `policy.resume`."""
    prompt_tokens: int = 0
    """Length of the prompt, as counted by the engine."""
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    prefix_version: int | None = None
    """Oldest version of the weights that computed the cached keys and values under these tokens; None: unknown."""
    queue_seconds: float | None = None
    """Seconds that the turn waited before it was sampled and, after an interruption, before it went on. An engine gives
    its own queue's; a replica adds what the turn waited to reach the engine. None: unknown."""

    def check_tokens(self, ends: Collection[int], vocabulary_size: int | None) -> None:
        """Check that all tokens can be the model's own.

        Args:
            ends: ids that may end a turn.
            vocabulary_size: rows of the model's output; None: unknown.

        Raises:
            EpisodeFault: the stop token is missing, or an id is outside the vocabulary. The server's set-up is the
                cause, so another attempt would end the same.
        """
        if self.finish_reason == "stop" and (not len(self.token_ids) or int(self.token_ids[-1]) not in ends):
            last = f"its last token is {self.token_ids[-1]}" if len(self.token_ids) else "it has no token"
            raise EpisodeFault(
                FaultKind.POLICY,
                f"the server says that the turn stopped, but {last}, and a turn ends with one of {sorted(ends)}: the "
                "stop token was removed, and the service does not guess it. Have the server return it (no_stop_trim of "
                "SGLang, include_stop_str_in_output of vLLM). Add any other token that ends turns to "
                "policy.sampling.stop_token_ids",
                error="StopTokenMissing",
                retryable=False,
            )
        highest = np.iinfo(np.int32).max if vocabulary_size is None else vocabulary_size - 1
        impossible = self.token_ids[(self.token_ids < 0) | (self.token_ids > highest)]
        if len(impossible):
            raise EpisodeFault(
                FaultKind.POLICY,
                f"the server sampled the id {impossible[0]}, but the model's ids are 0 to {highest}: it serves another "
                "model than policy.model or policy.tokenizer names",
                error="IdOutsideVocabulary",
                retryable=False,
            )

    def check(self) -> None:
        """Raise `ValueError` unless this is a whole turn: aligned arrays, not empty, finite, a known finish reason."""
        lengths = {len(self.token_ids), len(self.logprobs), len(self.weight_versions)}
        if len(lengths) != 1:
            raise ValueError(
                f"the engine returned {len(self.token_ids)} tokens, {len(self.logprobs)} log-probs and "
                f"{len(self.weight_versions)} weight versions: they must be of one length"
            )
        if len(self.token_ids) == 0:
            raise ValueError("the engine returned no token")
        if not np.isfinite(self.logprobs).all():
            raise ValueError("the engine returned a log-prob that is not a finite number")
        if self.prefix_version is not None and self.prefix_version > self.weight_versions.min():
            raise ValueError(
                f"the engine returned tokens of weight version {self.weight_versions.min()} but says that the keys and "
                f"values before them are of version {self.prefix_version} or newer"
            )
        if self.finish_reason not in ("stop", "length"):
            raise ValueError(f"finish_reason {self.finish_reason!r} is neither 'stop' nor 'length'")


@dataclass(frozen=True, slots=True)
class TurnInfo:
    """Facts about a turn besides its tokens. The defaults are for a request that belongs to no episode, such as
    one over HTTP. `task`, `agent`, `seed` and `turn` are for the scripted engine."""

    task: TaskRef | None = None
    """Task of the episode; None: the request belongs to no episode."""
    agent: str = "llm"
    """τ²'s agent that the policy plays: `llm`, `solo` or `gt`."""
    seed: int = 0
    """Seed of the episode."""
    turn: int = 0
    """Number of the turn in the episode, from 0."""
    min_version: int = 0
    """Weights older than this version must not sample the turn."""
    prefix_version: int | None = None
    """`Generation.prefix_version` of the turn before. Cached keys and values of older weights must not be reused. None:
    only those of the weights that sample the turn's first token may be."""
    known_tokens: int = 0
    """Tokens at the beginning of the prompt that were sent or sampled in the turn before. If the engine has to compute
    them again, it had evicted them."""


class Policy(Protocol):
    """Samples turns. The episodes of one event loop can share an instance."""

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, session_id: str, info: TurnInfo
    ) -> Generation:
        """Sample one turn.

        Args:
            input_ids: int32[n], the whole prompt.
            sampling: how to sample; the engine adds its own stop tokens.
            session_id: shared by all calls of one episode, so that a router can keep them on one replica for its
                prefix cache.
            info: what the policy may know of the turn besides its tokens.

        Raises:
            EpisodeFault: of kind `policy`, if the turn could not be sampled.
            EpisodeEnd: `context_length`, if the engine has no room for a turn.
            asyncio.CancelledError: the caller cancelled. The request is aborted in the engine.
        """
        ...
