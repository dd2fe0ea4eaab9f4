"""Turns that are too long for an engine: they get the room that is left, and an episode without room ends.

Invariant: an overlong episode ends as `context_length`, never as a fault. The policy itself made it long, and if such
episodes disappeared, the mean would cover only short ones. A turn that fits is not lost to an engine's way of counting:
SGLang refuses a prompt that fits if prompt and `max_new_tokens` together do not.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeEnd
from rollout_service.policy.base import Generation
from rollout_service.termination import TerminationReason

_WITH_LIMIT = re.compile(
    r"longer than the model's context length \((\d+) tokens"  # SGLang, about a prompt
    r"|maximum context length (?:of |is )?\(?(\d+)"  # SGLang and vLLM, about prompt and turn; verl, about a prompt
    r"|exceeds the maximum allowed length \((\d+) tokens"  # SGLang's scheduler
    r"|maximum model length of (\d+)"  # vLLM, about a prompt
    r"|`inputs` (?:tokens \+ `max_new_tokens` must be <=|must have less than) (\d+)"  # text-generation-inference
    r"|are more than the context of (\d+) tokens"  # the transformers engine here
)
_WITHOUT_LIMIT = re.compile(
    r"context_length_exceeded"
    r"|(?i:(?:context|sequence) (?:length|window)\b.{0,20}\bexceeded)"
    # "context" alone is not enough: "context deadline exceeded" is a gateway's timeout
    r"|(?i:\bexceed\w*\b.{0,60}(?:context[ _-](?:length|window|size|limit)|session_len|max_model_len|sequence length))"
    r"|(?i:(?:longer than|too long for)\b.{0,60}(?:context|session_len|max_model_len|sequence length))"
)


def said_limit(message: str) -> int | None:
    """The engine's context length (prompt and turn together), if the message says that a request was too long. 0: the
    message does not name the length; None: it is about something else."""
    found = _WITH_LIMIT.search(message)
    if found is not None:
        return int(next(filter(None, found.groups())))
    return 0 if _WITHOUT_LIMIT.search(message) else None


async def fitted(
    ask: Callable[[Sampling], Awaitable[Generation]], sampling: Sampling, prompt_length: int
) -> Generation:
    """The result of `ask`. If the engine says that the turn does not fit, ask once more with the room that it has.

    Raises:
        EpisodeEnd: with the reason `context_length`: the engine has no room for a turn.
        ValueError: the engine refused the request for another reason.
    """
    for tries_left in (1, 0):
        try:
            return await ask(sampling)
        except ValueError as refusal:
            # The text of Ray's error is a traceback; its cause has the engine's message.
            limit = said_limit(str(getattr(refusal, "cause", None) or refusal))
            if limit is None:
                raise
            room = limit - prompt_length
            if not tries_left or not 0 < room < sampling.max_new_tokens:
                break
            sampling = sampling.model_copy(update={"max_new_tokens": room})
    raise EpisodeEnd(TerminationReason.CONTEXT_LENGTH)
