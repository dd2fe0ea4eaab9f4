"""The policy behind verl's own LLM servers (SGLang or vLLM), reached through verl's client.

Invariant: token ids are passed in and out unchanged. verl reports only the oldest and newest weight version of a turn,
not one per token. So the last token gets the newest version, and every other token the oldest, to be safe.
Written against verl 0.9.1 (`LLMServerClient` in `verl/workers/rollout/llm_server.py`); nothing here imports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.policy.overlong import fitted
from rollout_service.policy.resume import resumed


class VerlPolicy:
    """Samples through a verl `LLMServerClient`. Use it in the client's event loop. The client balances the servers and
    keeps a session on one server."""

    def __init__(self, client: Any, prompt_length: int) -> None:
        """
        Args:
            prompt_length: verl's `rollout.prompt_length`, the most tokens of an episode's first prompt.
        """
        self._client = client
        self._prompt_length = prompt_length

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, session_id: str, info: TurnInfo
    ) -> Generation:
        """Sample one turn, see `Policy`. verl updates the weights of all servers at once, so none is too old.

        Raises:
            ConfigError: the first prompt is too long.
            EpisodeEnd: a later prompt is too long.
            ValueError: the servers returned no log-probs, or an answer that cannot be read.
        """
        if info.turn == 0 and len(input_ids) > self._prompt_length:
            raise ConfigError(
                f"The first prompt of {info.task} has {len(input_ids)} tokens, and rollout.prompt_length is "
                f"{self._prompt_length}.",
                "Raise data.max_prompt_length.",
            )

        async def sample(prompt: npt.NDArray[np.int32], how: Sampling) -> Generation:
            async def ask(fitting: Sampling) -> Generation:
                output = await self._client.generate(
                    request_id=session_id, prompt_ids=prompt.tolist(), sampling_params=_parameters(fitting)
                )
                try:
                    return _generation(output, len(prompt), fitting)
                except (AttributeError, TypeError) as error:
                    raise ValueError(f"the answer of verl's server cannot be read: {error}") from error

            return await fitted(ask, how, len(prompt))

        return await resumed(sample, input_ids, sampling)


def _parameters(sampling: Sampling) -> dict[str, Any]:
    """The parameters under the names that verl's SGLang and vLLM servers share. A new dict each time, because the
    servers remove entries from it."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_token_ids": list(sampling.stop_token_ids),
        "max_tokens": sampling.max_new_tokens,
        "logprobs": True,
    }


def _generation(output: Any, prompt_tokens: int, sampling: Sampling) -> Generation:
    """Read a verl `TokenOutput`. Its stop reason is the engine's own, or `completed` for everything but an abort. In
    the latter case a turn of the full length was cut, unless its last token ends a turn."""
    tokens = np.asarray(output.token_ids, dtype=np.int32)
    if output.log_probs is None and len(tokens):
        raise ValueError("verl's server returned no log-probs")
    versions = np.full(len(tokens), output.extra_fields.get("min_global_steps") or 0, dtype=np.int32)
    versions[-1:] = output.extra_fields.get("max_global_steps") or 0
    if output.stop_reason in ("abort", "aborted"):
        reason = "abort"
    elif output.stop_reason in ("stop", "length"):
        reason = output.stop_reason
    else:
        ended = len(tokens) > 0 and int(tokens[-1]) in sampling.stop_token_ids
        reason = "length" if len(tokens) >= sampling.max_new_tokens and not ended else "stop"
    return Generation(
        token_ids=tokens,
        logprobs=np.asarray(output.log_probs or [], dtype=np.float32),
        weight_versions=versions,
        finish_reason=reason,
        prompt_tokens=prompt_tokens,
        cached_tokens=output.extra_fields.get("num_cached_tokens") or 0,
    )
