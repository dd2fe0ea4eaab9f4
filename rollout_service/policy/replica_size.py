"""How many processes and GPUs one policy replica takes, from its settings alone."""

from __future__ import annotations

from rollout_service.config import PolicyConfig


def processes(policy: PolicyConfig) -> int:
    """Processes of one replica's engine that hold weights. Each takes a rank in a process group."""
    if policy.engine != "sglang":
        return 1
    return int(policy.engine_arguments.get("tp_size", 1)) * int(policy.engine_arguments.get("pp_size", 1))


def gpus(policy: PolicyConfig) -> float:
    """GPUs of one replica: `policy.gpus_per_replica`, or else one for each process of an SGLang engine not on a CPU."""
    if policy.gpus_per_replica is not None:
        return policy.gpus_per_replica
    on_gpus = policy.engine == "sglang" and policy.engine_arguments.get("device") != "cpu"
    return processes(policy) if on_gpus else 0
