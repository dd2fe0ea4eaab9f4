"""Whether the service can serve the user simulator's model.

Invariant: no weights are loaded. Only what the chat template loses in conversations of the configured domains counts.
"""

from __future__ import annotations

import rollout_service.logs as logs
import rollout_service.served_user as served_user
from rollout_service.chat.codec import ChatCodec
from rollout_service.config import RolloutConfig
from rollout_service.errors import CodecError
from rollout_service.policy import engine_check

_log = logs.logger(__name__)


def check(config: RolloutConfig, *, here: bool) -> None:
    """Check engine, model and chat template of `user.serve`.

    Args:
        here: whether the replicas will run on this machine, so that their packages and the model must be on it.

    Raises:
        ConfigError: a package is not installed, or there is no such model.
        CodecError: the codec cannot be proved, or a domain gives its user tools and the template leaves tools out.
    """
    if config.user.serve is None:
        return
    policy = config.user.serve.as_policy()
    with served_user.in_own_words():
        if here:
            engine_check.check_engine(policy)
            engine_check.check_model(policy)
        codec = ChatCodec.of(policy)
    losses = dict(codec.proof.losses)
    if (lost := losses.pop("tools", None)) is not None and (domains := _with_user_tools(config)):
        raise CodecError(
            f"user.serve: the user of {domains[0]} has tools, and the chat template of {codec.name!r} writes none: "
            f"{lost}.",
            "Serve a model that was trained to call tools, with the chat template that came with it; or choose a "
            "domain whose user has none.",
        )
    for why in losses.values():
        _log.warning("The chat template of the user simulator %s loses something: %s.", codec.name, why)


def _with_user_tools(config: RolloutConfig) -> list[str]:
    """The configured domains whose user has tools."""
    from rollout_service.tau2 import domain

    return [name for name in config.tasks.domains if domain.get(name).environment().user_tools is not None]
