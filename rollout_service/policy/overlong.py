"""Turns that an engine finds too long: one gets the room that there is; an episode that has no room left ends.

Invariant: an overlong episode ends as `context_length`, never as a fault: being long is the policy's own doing, and
episodes that vanish for it would leave a mean of the short ones. One that fits is not lost to how an engine counts:
SGLang refuses a prompt that fits when prompt and `max_new_tokens` together do not.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeEnd
from rollout_service.policy.base import Generation

_WITH_LIMIT = re.compile(
    r"longer than the model's context length \((\d+) tokens"  # SGLang, of a prompt
    r"|maximum context length (?:of |is )?\(?(\d+)"  # SGLang and vLLM, of prompt and turn together; verl, of a prompt
    r"|exceeds the maximum allowed length \((\d+) tokens"  # SGLang's scheduler
    r"|maximum model length of (\d+)"  # vLLM, of a prompt
    r"|`inputs` (?:tokens \+ `max_new_tokens` must be <=|must have less than) (\d+)"  # text-generation-inference
    r"|are more than the context of (\d+) tokens"  # the transformers engine here
)
_WITHOUT_LIMIT = re.compile(
    r"context_length_exceeded"
    r"|(?i:(?:context|sequence) (?:length|window)\b.{0,20}\bexceeded)"
    # not only "context": a gateway's "timeout exceeded … context deadline exceeded" says nothing about the request
    r"|(?i:\bexceed\w*\b.{0,60}(?:context[ _-](?:length|window|size|limit)|session_len|max_model_len|sequence length))"
    r"|(?i:(?:longer than|too long for)\b.{0,60}(?:context|session_len|max_model_len|sequence length))"
)


def said_limit(message: str) -> int | None:
    """Tokens, prompt and turn together, that the engine takes at most, if the message says that a request was too long;
    0 where it does not say how many; None where it says something else."""
    found = _WITH_LIMIT.search(message)
    if found is not None:
        return int(next(filter(None, found.groups())))
    return 0 if _WITHOUT_LIMIT.search(message) else None


async def fitted(
    ask: Callable[[Sampling], Awaitable[Generation]], sampling: Sampling, prompt_length: int
) -> Generation:
    """What `ask` gives; asked once more, with as much room as the engine has, if it says that it has less.

    Raises:
        EpisodeEnd: with the reason `context_length`; the engine has no room for a turn.
        ValueError: the engine refuses the request for another reason.
    """
    for tries_left in (1, 0):
        try:
            return await ask(sampling)
        except ValueError as refusal:
            # Ray's error has the traceback for its text, and what the engine said for its cause.
            limit = said_limit(str(getattr(refusal, "cause", None) or refusal))
            if limit is None:
                raise
            room = limit - prompt_length
            if not tries_left or not 0 < room < sampling.max_new_tokens:
                break
            sampling = sampling.model_copy(update={"max_new_tokens": room})
    raise EpisodeEnd("context_length")
