"""verl's own code, on a machine without GPUs: its agent loop workers and its batches.

Invariant: what `make test` installed beside the environment is seen only by tests that ask for it, and after all else.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

INSTALLED = Path(sys.prefix) / "verl"
"""Where `make test` puts it."""


def needed(module: str) -> Any:
    """The module of verl, or of what it is made of; skips the test where verl was not installed."""
    if not INSTALLED.is_dir():
        return pytest.importorskip(module)
    if str(INSTALLED) not in sys.path:
        sys.path.append(str(INSTALLED))
    return importlib.import_module(module)


def configuration(model: Path, **overrides: Any) -> Any:
    """verl's configuration of a PPO trainer; `rollout__n=3` sets actor_rollout_ref.rollout.n."""
    hydra = needed("hydra")
    folder = Path(needed("verl").__file__).parent / "trainer" / "config"
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose(
            "ppo_trainer",
            [
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.rollout.name=sglang",
                *(f"actor_rollout_ref.{name}={value}" for name, value in given.items()),
            ],
        )
