"""Whether a proved codec suits the episodes that are asked for.

Invariant: what a chat template makes impossible, or leaves out without a word, is refused in the user's terms, or
followed with a warning where the settings accept the loss. It never passes in silence.
"""

from __future__ import annotations

import rollout_service.logs as logs
from rollout_service.chat.codec import ChatCodec
from rollout_service.config import RolloutConfig
from rollout_service.errors import CodecError

_log = logs.logger(__name__)


def check_suits(codec: ChatCodec, config: RolloutConfig) -> None:
    """Check that the template can write what the configured episodes need.

    Raises:
        CodecError: names what it cannot write or leaves out, and what helps.
    """
    policy, proof = config.policy, codec.proof
    if config.agent == "solo" and (problem := proof.impossible.get("a conversation without a user")) is not None:
        raise CodecError(
            f"agent is solo, and the chat template of {codec.name!r} takes no conversation without a user: {problem}",
            "Choose agent llm, or another model.",
        )
    for loss, why in proof.losses.items():
        name = loss.replace(" ", "_")
        if name == "text_beside_calls" and policy.history == "append":
            continue  # what the policy sampled stays as it is
        if name not in policy.accepted_losses:
            raise CodecError(
                f"The chat template of {codec.name!r} would lose something: {why}.",
                f"Set policy.accepted_losses to [{name}] to go on without it"
                + (", or policy.history to append, which keeps it." if name == "text_beside_calls" else "."),
            )
        _log.warning("The chat template of %s loses something, as policy.accepted_losses accepts: %s.", codec.name, why)
