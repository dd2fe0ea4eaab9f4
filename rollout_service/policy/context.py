"""How many tokens the policy takes, prompt and turn together, and which ids its model knows.

Invariant: every process of a service finds the same numbers, from the configuration and the model's own files.
"""

from __future__ import annotations

import functools
from typing import Any

from rollout_service.config import Policy
from rollout_service.errors import ConfigError, first_line
from rollout_service.policy.base import RequestError, Sampling, refuse_unknown_ids

WITHOUT_MODEL = 65536
"""Tokens, where nothing says how many."""


def context_length(policy: Policy) -> int:
    """`policy.context_length`, or what the model's configuration says.

    Raises:
        ConfigError: the model's configuration cannot be read.
    """
    if policy.context_length is not None:
        return policy.context_length
    config = _configuration(policy)
    return WITHOUT_MODEL if config is None else int(getattr(config, "max_position_embeddings", WITHOUT_MODEL))


def vocabulary(policy: Policy) -> int | None:
    """Rows of the model's embedding: its ids are those below. None where no model is served here, or its
    configuration does not say.

    Raises:
        ConfigError: the model's configuration cannot be read.
    """
    rows: int | None = getattr(_configuration(policy), "vocab_size", None)
    return rows


def check_sampling(policy: Policy, sampling: Sampling) -> None:
    """See that the model has the tokens that are to end a turn.

    Raises:
        ConfigError: it has not, or its configuration cannot be read.
    """
    if sampling.stop_token_ids and (known := vocabulary(policy)) is not None:
        try:
            refuse_unknown_ids(sampling.stop_token_ids, known, "policy.sampling.stop_token_ids")
        except RequestError as error:
            raise ConfigError(f"{error}.", f"Give ids of {policy.model}.") from None


def _configuration(policy: Policy) -> Any:
    """The text model's configuration; None where no model is served here."""
    return _read(policy.model) if policy.model and policy.engine in ("sglang", "transformers") else None


@functools.cache
def _read(model: str) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(model).get_text_config()
    except Exception as error:  # transformers' and huggingface_hub's words for it are many
        raise ConfigError(
            f"policy.model: the configuration of {model!r} cannot be read: {first_line(error)}",
            "Give a folder with config.json that every node can read, or a hub name.",
        ) from error
