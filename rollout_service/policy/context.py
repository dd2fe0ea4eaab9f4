"""Sizes of the policy's model: its context length (prompt and turn together) and its vocabulary.

Invariant: every process of a service finds the same sizes, from the configuration and the model's own files. Nothing
else is assumed: an external endpoint is asked (`rollout_service.policy.endpoint`) before any episode starts.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, first_line
from rollout_service.policy.base import RequestError, check_ids

WITHOUT_MODEL = 65536
"""Context length of the scripted engine, which has no model to set a limit."""


def only_endpoint_knows(policy: PolicyConfig) -> bool:
    """Whether only the external endpoint that serves the policy knows its `context_length`."""
    return policy.engine == "http" and policy.context_length is None


def context_length(policy: PolicyConfig) -> int:
    """`policy.context_length`, or the value in the model's configuration.

    Raises:
        ConfigError: the model's configuration cannot be read, or neither of them has it.
    """
    if policy.context_length is not None:
        return policy.context_length
    if policy.engine == "scripted":
        return WITHOUT_MODEL
    said = None if policy.engine == "http" else getattr(_configuration(str(policy.model)), "max_position_embeddings", 0)
    if not said:
        source = "its endpoint was not asked" if policy.engine == "http" else f"{policy.model!r} does not say"
        raise ConfigError(
            f"policy.context_length is not set, and {source} how many tokens the model takes.",
            "Set it: prompt and turn together.",
        )
    return int(said)


def vocabulary(policy: PolicyConfig) -> int | None:
    """Rows of the model's embedding, padding included: every id is below this. None if the model's files are not at
    hand or do not say.

    Raises:
        ConfigError: the configuration of a model that is served here cannot be read.
    """
    # For an endpoint, the tokenizer's folder usually is the model's own.
    source = policy.model or policy.tokenizer if policy.engine == "http" else policy.model
    if policy.engine == "scripted" or source is None:
        return None
    if policy.engine == "http" and not (Path(source) / "config.json").is_file():
        return None
    try:
        rows: int | None = getattr(_configuration(source), "vocab_size", None)
    except ConfigError:
        if policy.engine != "http":
            raise
        return None
    return rows


def check_sampling(policy: PolicyConfig, sampling: Sampling) -> None:
    """Check that the stop tokens are in the model's vocabulary.

    Raises:
        ConfigError: one is not, or the model's configuration cannot be read.
    """
    if sampling.stop_token_ids and (known := vocabulary(policy)) is not None:
        try:
            check_ids(sampling.stop_token_ids, known, "policy.sampling.stop_token_ids")
        except RequestError as error:
            raise ConfigError(f"{error}.", f"Give ids of {policy.model or policy.tokenizer}.") from None


@functools.cache
def _configuration(model: str) -> Any:
    """The configuration of the text model."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(model).get_text_config()
    except Exception as error:  # transformers and huggingface_hub raise many types
        raise ConfigError(
            f"policy.model: the configuration of {model!r} cannot be read: {first_line(error)}",
            "Give a folder with config.json that every node can read, or a hub name.",
        ) from error
