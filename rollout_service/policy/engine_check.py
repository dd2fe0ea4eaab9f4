"""Whether a machine has what the policy's engine needs: its packages, the model's files, GPUs.

Invariant: nothing is imported, loaded or downloaded. What cannot be told from here is not refused.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from rollout_service.config import PolicyConfig, RolloutConfig
from rollout_service.errors import ConfigError, ServiceError
from rollout_service.policy.replica_size import gpus

_PACKAGES = {"sglang": ("sglang", "torch"), "transformers": ("transformers", "torch")}
"""What each engine that serves a model imports."""

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")


def check_engine(policy: PolicyConfig) -> str:
    """Check that the engine's packages are installed in this Python. Returns their versions, in words.

    Raises:
        ConfigError: one is not.
    """
    needed = _PACKAGES.get(policy.engine, ())
    for package in needed:
        if importlib.util.find_spec(package) is None:
            extra = "sglang" if policy.engine == "sglang" else "torch"
            raise ConfigError(
                f"policy.engine is {policy.engine}, and the package {package} is not installed.",
                f'Run: pip install "tau2-rollout-service[{extra}]"',
            )
    return ", ".join(f"{package} {metadata.version(package)}" for package in needed)


def check_model(policy: PolicyConfig) -> str | None:
    """Check the folder of the model that replicas serve.

    Returns:
        What it holds, in words; None: `policy.model` is the name of a model on a hub, which is not asked.

    Raises:
        ConfigError: there is no such folder, or it holds no model.
    """
    name = str(policy.model)
    folder = Path(name)
    if folder.is_file():
        return f"one file of {_gibibytes([folder])}"
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ConfigError(
                f"policy.model: there is no folder {name!r}.", "Check the path; a hub name is written owner/name."
            )
        return None
    if not (folder / "config.json").is_file():
        raise ConfigError(f"policy.model: {name} has no config.json.", "Name a model's folder in Hugging Face format.")
    weights = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
    if not weights and policy.engine_arguments.get("load_format") != "dummy":
        raise ConfigError(
            f"policy.model: {name} has no weights ({', '.join(_WEIGHTS)}).", "Copy them there, or name another folder."
        )
    return f"config.json, weights of {_gibibytes(weights)}"


def needed_gpus(policy: PolicyConfig) -> float:
    """GPUs of all replicas that are there from the start."""
    replicas = policy.replicas if policy.autoscaling is None else policy.autoscaling.min_replicas
    outside = policy.engine == "http" or policy.application is not None
    return 0.0 if outside else replicas * gpus(policy)


def users_gpus(config: RolloutConfig) -> float:
    """GPUs of all replicas of a user simulator that the service serves."""
    server = config.user.serve
    return needed_gpus(server.as_policy()) if server is not None and config.serves_user else 0.0


def check_gpus(config: RolloutConfig, found: float) -> None:
    """Check that the replicas find room on a machine, or a cluster that does not grow, with so many GPUs.

    Raises:
        ServiceError: they do not.
    """
    of_policy, of_user = needed_gpus(config.policy), users_gpus(config)
    if of_policy + of_user > found:
        both = f", the user simulator's for {of_user:g}" if of_user else ""
        raise ServiceError(
            f"The policy's replicas ask for {of_policy:g} GPUs{both}, and there are {found:g}.",
            "Ask for fewer: policy.replicas, policy.gpus_per_replica, tp_size in policy.engine_arguments"
            + (", the same in user.serve" if of_user else "")
            + "; or start the service on a larger cluster.",
        )


def _gibibytes(files: list[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 2**30:.1f} GiB"
