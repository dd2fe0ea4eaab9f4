"""What the policy's model takes and gives: how many tokens, prompt and turn together, and how many ids.

Invariant: every process of a service finds the same, from the configuration and the model's own files. What they do not
say is not assumed: an endpoint of others is asked (`rollout_service.policy.endpoint`) before anything is played.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, first_line
from rollout_service.policy.base import RequestError, refuse_unknown_ids

WITHOUT_MODEL = 65536
"""Tokens of an episode that the scripted engine plays: there is no model that could set a limit."""


def only_endpoint_knows(policy: PolicyConfig) -> bool:
    """Whether nobody but the endpoint of others, which serves the policy, can say its `context_length`."""
    return policy.engine == "http" and policy.context_length is None


def context_length(policy: PolicyConfig) -> int:
    """`policy.context_length`, or what the model's configuration says.

    Raises:
        ConfigError: the model's configuration cannot be read, or nothing says.
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
    """Rows of the model's embedding, those that only pad it included: its ids are those below. None where the model's
    files are not at hand, or do not say.

    Raises:
        ConfigError: the configuration of a model that is served here cannot be read.
    """
    # Behind an endpoint, the tokenizer's folder is the model's own as a rule.
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
    """See that the model has the tokens that are to end a turn.

    Raises:
        ConfigError: it has not, or its configuration cannot be read.
    """
    if sampling.stop_token_ids and (known := vocabulary(policy)) is not None:
        try:
            refuse_unknown_ids(sampling.stop_token_ids, known, "policy.sampling.stop_token_ids")
        except RequestError as error:
            raise ConfigError(f"{error}.", f"Give ids of {policy.model or policy.tokenizer}.") from None


@functools.cache
def _configuration(model: str) -> Any:
    """The text model's."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(model).get_text_config()
    except Exception as error:  # transformers' and huggingface_hub's words for it are many
        raise ConfigError(
            f"policy.model: the configuration of {model!r} cannot be read: {first_line(error)}",
            "Give a folder with config.json that every node can read, or a hub name.",
        ) from error
