"""The contract between an episode and whatever samples its turns.

Invariant: a `Generation`'s three arrays are aligned and come from the engine together. No layer between the engine
and the ledger may decode, trim or re-encode them. No number reaches an engine that is outside the range that every
engine computes with: `Sampling` holds what needs no model, `check_request` what does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeFault, FaultKind


class RequestError(ValueError):
    """The engine cannot do what is asked for, now or later; names the field."""

    retryable = False


def check_request(
    input_ids: npt.NDArray[np.int32], sampling: Sampling, *, vocabulary: int, context_length: int
) -> None:
    """See, before an engine is given a request, that its model can answer it.

    Args:
        input_ids: int32[n], the prompt.
        vocabulary: rows of the model's embedding.
        context_length: tokens that the engine takes, prompt and turn together.

    Raises:
        RequestError: no input, an id from outside, which would end some engines and every turn with them, or more
            tokens than the engine takes.
    """
    if not len(input_ids):
        raise RequestError("input_ids is empty: give one id at least")
    refuse_unknown_ids(input_ids, vocabulary, "input_ids")
    refuse_unknown_ids(sampling.stop_token_ids, vocabulary, "stop_token_ids")
    if len(input_ids) + sampling.max_new_tokens > context_length:
        raise RequestError(
            f"{len(input_ids)} input_ids and max_new_tokens of {sampling.max_new_tokens} are more than the context of "
            f"{context_length} tokens"
        )


def refuse_unknown_ids(ids: npt.ArrayLike, vocabulary: int, field: str) -> None:
    """See that token ids are among the model's, which are 0 to `vocabulary` - 1.

    Raises:
        RequestError: one is not; names the field.
    """
    given = np.asarray(ids, dtype=np.int64)
    unknown = given[(given < 0) | (given >= vocabulary)]
    if len(unknown):
        raise RequestError(f"{field} has {unknown[0]}; the model's ids are 0 to {vocabulary - 1}")


@dataclass(slots=True, eq=False)
class Generation:
    """What the engine sampled for one turn."""

    token_ids: npt.NDArray[np.int32]
    """int32[m], the stop token included when there was one."""
    logprobs: npt.NDArray[np.float32]
    """float32[m], natural log, of the sampled tokens under softmax(logits / temperature): before top-p and top-k."""
    weight_versions: npt.NDArray[np.int32]
    """int32[m], the version of the weights that sampled each token."""
    finish_reason: str
    """`stop` or `length`; from an engine also `abort`: interrupted, see `rollout_service.policy.resume`."""
    prompt_tokens: int = 0
    """Length of the prompt as the engine counted it."""
    cached_tokens: int = 0
    """Of those, taken from the prefix cache."""
    prefix_version: int | None = None
    """Oldest version of the weights whose keys and values the tokens were computed over; None: not known."""

    def check_tokens(self, ends: Collection[int], vocabulary_size: int | None) -> None:
        """See that these can be the model's own tokens, all of them.

        Args:
            ends: ids that may end a turn.
            vocabulary_size: rows of the model's output; None: not known.

        Raises:
            EpisodeFault: the stop token is missing, or an id is none of the model's. It is the server's set-up, so
                another attempt would end the same.
        """
        if self.finish_reason == "stop" and (not len(self.token_ids) or int(self.token_ids[-1]) not in ends):
            last = f"its last token is {self.token_ids[-1]}" if len(self.token_ids) else "it has no token"
            raise EpisodeFault(
                FaultKind.POLICY,
                f"the server says that the turn stopped, but {last}, and a turn ends with one of {sorted(ends)}: the "
                "stop token was taken off, and is not put back by guess. Have the server return it (no_stop_trim of "
                "SGLang, include_stop_str_in_output of vLLM); a further token that ends turns belongs in "
                "policy.sampling.stop_token_ids",
                error="StopTokenMissing",
                retryable=False,
            )
        highest = np.iinfo(np.int32).max if vocabulary_size is None else vocabulary_size - 1
        impossible = self.token_ids[(self.token_ids < 0) | (self.token_ids > highest)]
        if len(impossible):
            raise EpisodeFault(
                FaultKind.POLICY,
                f"the server sampled the id {impossible[0]}, and the model has those from 0 to {highest}: it serves "
                "another model than policy.model or policy.tokenizer names",
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
                f"the engine returned tokens of weight version {self.weight_versions.min()} and says that none of the "
                f"keys and values before them were older than {self.prefix_version}"
            )
        if self.finish_reason not in ("stop", "length"):
            raise ValueError(f"finish_reason {self.finish_reason!r} is neither 'stop' nor 'length'")


class Policy(Protocol):
    """Samples turns. Implementations are safe to share between the episodes of one event loop."""

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, session_id: str, metadata: dict[str, Any]
    ) -> Generation:
        """Sample one turn.

        Args:
            input_ids: int32[n], everything that the engine is to see.
            sampling: how to sample; the engine adds its own stop tokens.
            session_id: one episode's calls share it; a router may keep them on one replica for its prefix cache.
            metadata: what the episode knows of itself: `task`, `agent`, `seed` and `turn`, on which the scripted engine
                acts; `min_version`: weights older than that may not sample the turn; `prefix_version`, from the second
                turn on where it is known: that of the turn before. Keys and values of older weights may not be reused;
                without it, none but those of the weights that sample the turn's first token.

        Raises:
            EpisodeFault: of kind `policy`, when no tokens could be had.
            EpisodeEnd: `context_length`, when the engine has no room for a turn.
            asyncio.CancelledError: the caller cancelled; the request is aborted in the engine.
        """
        ...
