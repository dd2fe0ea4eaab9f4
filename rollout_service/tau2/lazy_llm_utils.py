"""Lets `tau2` be imported without litellm, which takes five times as long as all the rest of it.

Only `tau2.utils.llm_utils` imports litellm, and an episode with a scripted user and no judge never calls it. Until its
first use a stand-in takes its place in `sys.modules`.

Invariant: whatever asks a language model runs τ²'s own code. The stand-in only passes calls on to it.
"""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

_NAME = "tau2.utils.llm_utils"
_lock = threading.Lock()


class _StandIn(ModuleType):
    """Offers the names that `tau2` imports; any other name loads the module itself."""

    @staticmethod
    def generate(*args: Any, **kwargs: Any) -> Any:
        """τ²'s own `generate`: one request to a language model."""
        return load().generate(*args, **kwargs)

    @staticmethod
    def get_cost(messages: Any) -> None:
        """The costs of a simulation are not known: trajectories count their own, see `UserUsage`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for such names
            raise AttributeError(name)
        return getattr(load(), name)


def install() -> None:
    """Put the stand-in in place, unless the module is loaded already."""
    sys.modules.setdefault(_NAME, _StandIn(_NAME))


def load() -> ModuleType:
    """The module itself, imported at the first call, with litellm set up for the service."""
    with _lock:
        if not isinstance(sys.modules.get(_NAME), _StandIn):
            return importlib.import_module(_NAME)
        setup = importlib.import_module("rollout_service.tau2.litellm_setup")
        del sys.modules[_NAME]
        loaded = importlib.import_module(_NAME)
        setup.settle()
        return loaded
