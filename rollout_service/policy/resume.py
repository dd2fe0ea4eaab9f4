"""Turns that were interrupted for a weight update go on from the tokens that they have.

Invariant: a resumed turn is the concatenation of its parts, each token with the log-prob and the version of the weights
that sampled it. What a part sampled is the prompt of the next; nothing is sampled twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt

from rollout_service.policy.base import Generation, Sampling

Sample = Callable[[npt.NDArray[np.int32], Sampling], Awaitable[Generation]]
"""Samples from a prompt, int32[n]; what it gives may be interrupted: `finish_reason` is `abort`."""

_EMPTY_WAIT_SECONDS = 0.05
"""Before asking again after a part without a token: the engine is still stopped."""


async def resumed(sample: Sample, input_ids: npt.NDArray[np.int32], sampling: Sampling) -> Generation:
    """One whole turn, asking `sample` again for as long as it is interrupted."""
    parts: list[Generation] = []
    prompt = input_ids
    room = sampling.max_new_tokens
    while True:
        part = await sample(prompt, sampling.model_copy(update={"max_new_tokens": room}) if parts else sampling)
        parts.append(part)
        room -= len(part.token_ids)
        if part.finish_reason != "abort":
            return joined(parts)
        if room == 0:  # interrupted after its last token
            return joined([*parts[:-1], _ended_by_length(part)])
        if len(part.token_ids) == 0:
            await asyncio.sleep(_EMPTY_WAIT_SECONDS)
        prompt = np.concatenate([prompt, part.token_ids])


def joined(parts: list[Generation]) -> Generation:
    """The turn that the parts make, in order. Prompt and cached tokens are the first part's: the turn's own prompt."""
    if len(parts) == 1:
        return parts[0]
    return Generation(
        token_ids=np.concatenate([part.token_ids for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        weight_versions=np.concatenate([part.weight_versions for part in parts]),
        finish_reason=parts[-1].finish_reason,
        prompt_tokens=parts[0].prompt_tokens,
        cached_tokens=parts[0].cached_tokens,
    )


def _ended_by_length(part: Generation) -> Generation:
    return Generation(
        part.token_ids, part.logprobs, part.weight_versions, "length", part.prompt_tokens, part.cached_tokens
    )
