"""Old import paths: whoever uses one is told the new one.

Invariant: only a module that does not exist is looked up here, so nothing that can be imported changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_MOVED = {
    "adapters.slime_rewards": "adapters.slime.rewards",
    "adapters.slime_samples": "adapters.slime.samples",
    "adapters.slime_service": "adapters.slime.service",
    "adapters.slime_settings": "adapters.slime.settings",
    "adapters.slime_types": "adapters.slime.types",
    "adapters.verl_loop": "adapters.verl.loop",
    "arguments": "config.arguments",
    "batch": "record.batch",
    "call_formats": "chat.call_formats",
    "codec_proof": "chat.proof",
    "doctor": "cli.doctor",
    "ledger": "record.ledger",
    "parquet": "record.parquet",
    "parsed_turn": "chat.parsed_turn",
    "planning": "collecting.planning",
    "progress": "collecting.progress",
    "record_check": "audit.record_check",
    "request": "collecting.request",
    "scheduling": "collecting.scheduler",
    "schema": "record.schema",
    "secrets": "config.secrets",
    "selection": "config.selection",
    "sizing": "cli.sizing",
    "slots": "tau2.slots",
    "statistics": "record.statistics",
    "storage": "record.storage",
    "stream": "collecting.stream",
    "tau2.clock": "tau2.deadline",
    "tau2.played": "tau2.fast_evaluation",
    "text_cache": "chat.text_cache",
    "trajectory": "record.trajectory",
    "transcript": "chat.transcript",
    "verify": "audit.verify",
    "waiting": "collecting.waits",
}
"""Modules of version 0.1, and where their contents are now; both below `rollout_service`."""


class MovedModules:
    """Stands last among the import system's finders (`sys.meta_path`), where only unknown modules arrive."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Say where a module is now.

        Raises:
            ModuleNotFoundError: it was moved.
        """
        package, _, module = name.partition(".")
        if package == __package__ and module in _MOVED:
            new = f"{__package__}.{_MOVED[module]}"
            raise ModuleNotFoundError(f"{name} is now {new}: import it from there.", name=name)
        return None
