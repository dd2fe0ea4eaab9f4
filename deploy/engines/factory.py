"""Makes the engine that the settings name.

Invariant: only the module of the chosen engine is imported, because each brings a large library.
"""

from __future__ import annotations

import rollout_service.garbage as garbage
from deploy.engines.base import Engine
from rollout_service.config import RolloutConfig


def make(config: RolloutConfig) -> Engine:
    """Start the engine that `policy.engine` names. Blocks until it can sample.

    Raises:
        ConfigError: the engine does not take these settings.
        Exception: the engine's own error if it cannot start.
    """
    policy = config.policy
    if policy.engine == "sglang":
        from deploy.engines.sglang import SglangEngine

        return SglangEngine(policy)
    if policy.engine == "transformers":
        with garbage.left_alone():
            from deploy.engines.transformers import TransformersEngine

        return TransformersEngine(policy)
    with garbage.left_alone():
        from deploy.engines.scripted import ScriptedEngine
        from rollout_service.chat.codec import ChatCodec
        from rollout_service.tau2 import tasks

        for domain in config.tasks.domains:
            tasks.references(domain, config.tasks.chosen_split)  # parse it now, not in the first turn
        codec = ChatCodec.of(policy)
        return ScriptedEngine(policy.script, codec, policy.weight_version)
