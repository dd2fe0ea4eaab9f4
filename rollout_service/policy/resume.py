"""Resuming turns that were interrupted for a weight update.

Invariant: a resumed turn is the concatenation of its parts; each token has the log-prob and the version of the weights
that sampled it. The tokens of one part extend the prompt of the next; nothing is sampled twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation

Sample = Callable[[npt.NDArray[np.int32], Sampling], Awaitable[Generation]]
"""Samples from a prompt, int32[n]. The result may be an interrupted part, with the `finish_reason` `abort`."""

_EMPTY_WAIT_SECONDS = 0.05
"""Pause after a part without a token, because the engine is still stopped."""


async def resumed(sample: Sample, input_ids: npt.NDArray[np.int32], sampling: Sampling) -> Generation:
    """One whole turn. `sample` is called again as long as the turn is interrupted."""
    parts: list[Generation] = []
    prompt = input_ids
    room = sampling.max_new_tokens
    ends = () if sampling.ignore_eos else sampling.stop_token_ids
    while True:
        part = await sample(prompt, sampling.model_copy(update={"max_new_tokens": room}) if parts else sampling)
        part = ended_by(part, ends)
        parts.append(part)
        room -= len(part.token_ids)
        if part.finish_reason != "abort":
            return joined(parts)
        if room == 0:  # interrupted after its last token
            return joined([*parts[:-1], replace(part, finish_reason="length")])
        if len(part.token_ids) == 0:
            await asyncio.sleep(_EMPTY_WAIT_SECONDS)
        prompt = np.concatenate([prompt, part.token_ids])


def ended_by(part: Generation, ends: Collection[int]) -> Generation:
    """The part, as a finished turn if it holds one of `ends`, the tokens that end a turn. SGLang reports `abort` even
    if the interrupt came in the step that sampled such a token. Tokens after it do not belong to the turn."""
    if part.finish_reason != "abort":
        return part
    found = np.flatnonzero(np.isin(part.token_ids, list(ends)))
    if not len(found):
        return part
    upto = int(found[0]) + 1
    return replace(
        part,
        token_ids=part.token_ids[:upto],
        logprobs=part.logprobs[:upto],
        weight_versions=part.weight_versions[:upto],
        finish_reason="stop",
    )


def joined(parts: list[Generation]) -> Generation:
    """The turn made of the parts, in order. The first part with a token gives the counts of prompt and cached tokens:
    its prompt is the turn's own, and a part that never ran counted nothing. It also has the oldest keys and values:
    those of a later part are as old, or were computed again. The turn waited as long as all parts together."""
    if len(parts) == 1:
        return parts[0]
    waits = [part.queue_seconds for part in parts if part.queue_seconds is not None]
    first = next((part for part in parts if len(part.token_ids)), parts[0])
    return Generation(
        token_ids=np.concatenate([part.token_ids for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        weight_versions=np.concatenate([part.weight_versions for part in parts]),
        finish_reason=parts[-1].finish_reason,
        prompt_tokens=first.prompt_tokens,
        cached_tokens=first.cached_tokens,
        prefix_version=first.prefix_version,
        queue_seconds=sum(waits) if len(waits) == len(parts) else None,
    )
