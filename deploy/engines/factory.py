"""Makes the engine that the settings name.

Invariant: only the module of the chosen engine is imported, because each brings a large library.
"""

from __future__ import annotations

import rollout_service.garbage as garbage
from deploy.engines.base import Engine
from rollout_service.config import RolloutConfig
from rollout_service.phases import Phases


def make(config: RolloutConfig, phases: Phases) -> Engine:
    """Start the engine that `policy.engine` names. Blocks until it can sample.

    Args:
        phases: gets the phases of the start.

    Raises:
        ConfigError: the engine does not take these settings.
        Exception: the engine's own error if it cannot start.
    """
    policy = config.policy
    if policy.engine == "sglang":
        from deploy.engines.sglang import SglangEngine

        engine = SglangEngine(policy)
        phases.end("engine", engine.start_seconds)
        return engine
    if policy.engine == "transformers":
        with garbage.left_alone():
            from deploy.engines.transformers import TransformersEngine

        phases.end("imports")
        model = TransformersEngine(policy)
        phases.end("model")
        return model
    with garbage.left_alone():
        from deploy.engines.scripted import ScriptedEngine
        from rollout_service.chat.codec import ChatCodec
        from rollout_service.tau2 import tasks

        for domain in config.tasks.domains:
            tasks.references(domain, config.tasks.chosen_split)  # parse it now, not in the first turn
        codec = ChatCodec.of(policy)
        phases.end("imports and tasks")
        return ScriptedEngine(policy.script, codec, policy.weight_version)
