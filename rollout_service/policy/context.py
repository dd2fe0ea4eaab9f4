"""How many tokens the policy takes, prompt and turn together.

Invariant: every process of a service finds the same number, from the configuration and the model's own files.
"""

from __future__ import annotations

import functools

from rollout_service.config import Policy
from rollout_service.errors import ConfigError, first_line

WITHOUT_MODEL = 65536
"""Tokens, where nothing says how many."""


def context_length(policy: Policy) -> int:
    """`policy.context_length`, or what the model's configuration says.

    Raises:
        ConfigError: the model's configuration cannot be read.
    """
    if policy.context_length is not None:
        return policy.context_length
    return _of_model(policy.model) if policy.model and policy.engine in ("sglang", "transformers") else WITHOUT_MODEL


@functools.cache
def _of_model(model: str) -> int:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model).get_text_config()
    except Exception as error:  # transformers' and huggingface_hub's words for it are many
        raise ConfigError(
            f"policy.model: the configuration of {model!r} cannot be read: {first_line(error)}",
            "Give a folder with config.json that every node can read, or a hub name.",
        ) from error
    return int(getattr(config, "max_position_embeddings", WITHOUT_MODEL))
