"""Checks a machine and a configuration before a collection.

Invariant: it changes nothing, starts nothing and spends nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import rollout_service.cli.gateway_checks as gateway_checks
import rollout_service.policy.engine_check as engine_check
import rollout_service.preflight as preflight
from rollout_service.cli.finding import Finding, NotChecked, finding
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError


def examine(config: RolloutConfig, address: str | None = None) -> list[Finding]:
    """Check everything that a collection with `config` needs, on the cluster at `address` or, without one, on this
    machine. What was not checked is among the findings."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("machine", _machine),
        ("packages", _packages),
        ("τ²-bench", _tau2),
        ("tasks", lambda: _tasks(config)),
        ("agent", lambda: _agent(config)),
        ("policy", lambda: _policy(config)),
        ("policy's engine", lambda: _on_nodes(_engine, config, address)),
        ("policy's model", lambda: _on_nodes(_model, config, address)),
        ("GPUs", lambda: _gpus(config, address)),
        ("policy's tokenizer", lambda: _codec(config)),
        ("policy's context", lambda: _context(config)),
        ("policy's endpoint", lambda: _endpoint(config)),
        ("user simulator", lambda: _user(config, address)),
        ("judge", lambda: _judge(config)),
        ("reviewer", lambda: _reviewer(config)),
        ("tape", lambda: _tape(config)),
        ("keys", lambda: _on_nodes(_keys, config, address)),
        ("gateway", lambda: gateway_checks.served_at(config)),
        ("gateway's port", lambda: gateway_checks.port(config, address)),
        ("gateway's tokens", lambda: _on_nodes(gateway_checks.tokens, config, address)),
        ("gateway's certificate", lambda: _on_nodes(gateway_checks.certificate, config, address)),
        ("memory", lambda: _memory(config)),
        ("cluster", lambda: _cluster(address)),
    ]
    findings = [finding(what, check) for what, check in checks]
    return findings + [Finding("requests", None, text) for text in _unasked(config)]


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise RolloutError(f"Python {platform.python_version()} is not supported.", "Use 3.11 to 3.13.")
    return platform.python_version()


def _machine() -> str:
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(os.getcwd())
    gigabyte = 2**30
    return (
        f"{os.cpu_count()} CPUs, {memory.available / gigabyte:.1f} of {memory.total / gigabyte:.1f} GiB memory free, "
        f"{disk.free / gigabyte:.1f} GiB disk free"
    )


def _packages() -> str:
    names = ("ray", "transformers", "renderers", "litellm", "pyarrow")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _tau2() -> str:
    from rollout_service.tau2 import compat

    return f"{compat.DISTRIBUTION} {compat.VERSION}"


def _tasks(config: RolloutConfig) -> str:
    return f"{config.tasks.domain}/{config.tasks.chosen_split}: {len(preflight.check_tasks(config))} tasks"


def _policy(config: RolloutConfig) -> str:
    policy = config.policy
    if policy.engine == "scripted":
        return "scripted: plays the tasks' gold actions, no model"
    if policy.engine == "http":
        return f"http: {policy.model or 'whatever model'} is served elsewhere, at policy.url"
    return f"{policy.engine}: serves {policy.model}"


def _on_nodes(check: Callable[[RolloutConfig], str], config: RolloutConfig, address: str | None) -> str:
    """A check of this machine, where the service runs on it. The nodes of a cluster may have what it lacks."""
    try:
        return check(config)
    except RolloutError as error:
        if address is None:
            raise
        raise NotChecked(f"it is needed on the cluster's nodes; this machine lacks it: {error.problem}") from error


def _agent(config: RolloutConfig) -> str:
    preflight.check_agent(config)
    played = "the" if config.agent == "llm" else "at least one of the"
    return f"{config.agent}: can play {played} configured tasks"


def _engine(config: RolloutConfig) -> str:
    if config.policy.engine not in ("sglang", "transformers"):
        return "no package beyond this one's own"
    return engine_check.check_engine(config.policy)


def _model(config: RolloutConfig) -> str:
    policy = config.policy
    if policy.engine not in ("sglang", "transformers"):
        return "none is loaded here"
    found = engine_check.check_model(policy)
    if found is None:
        raise NotChecked(f"{policy.model} is the name of a model on a hub; replicas download it when they start")
    return f"{policy.model}: {found}"


def _gpus(config: RolloutConfig, address: str | None) -> str:
    needed = engine_check.needed_gpus(config.policy) + engine_check.users_gpus(config)
    if not needed:
        return "none is needed"
    if address is not None:
        from rollout_service.cluster import cluster_size

        found, where = cluster_size(address)[2], f"the cluster at {address}"
    else:
        found, where = float(_gpus_here()), "this machine"
    engine_check.check_gpus(config, found)
    return f"{needed:g} of {found:g} on {where}"


def _gpus_here() -> int:
    try:
        import torch
    except ImportError as error:
        raise NotChecked("torch is not installed, which would count them") from error
    return torch.cuda.device_count()


def _endpoint(config: RolloutConfig) -> str:
    policy = config.policy
    if policy.url is None:
        return "none: replicas of the service's own sample"
    preflight.check_endpoint("policy.url", policy.url)
    return f"something listens at {policy.url}"


def _keys(config: RolloutConfig) -> str:
    preflight.check_keys(config)
    return "none is missing here"


def _unasked(config: RolloutConfig) -> list[str]:
    """What only requests to models would tell."""
    texts = []
    if config.policy.engine == "http":
        texts.append("whether policy.url samples: no turn was asked for")
    if config.user_kind == "llm" and config.user.serve is None:
        texts.append(f"whether {config.user.model} answers and takes the key: no request was made, since it may cost")
    if config.policy.engine in ("sglang", "transformers"):
        texts.append("whether the engine starts with policy.engine_arguments, and whether the model fits in memory")
    return texts


def _codec(config: RolloutConfig) -> str:
    codec = preflight.load_codec(config)
    history = "rewrites history" if codec.rewrites_history else "extends history"
    return f"{codec.name}: proved, template {history}, turns end with {codec.end_of_turn}"


def _context(config: RolloutConfig) -> str:
    from rollout_service.policy.context import context_length

    policy = preflight.with_context_length(config, retry_seconds=0).policy
    return f"{context_length(policy):,} tokens, prompt and turn together"


def _user(config: RolloutConfig, address: str | None) -> str:
    user = config.user
    if config.user_kind == "dummy":
        return "none: the solo agent works alone"
    if config.user_kind == "scripted":
        return "scripted"
    preflight.check_user(config, here=address is None)
    if user.serve is not None:
        return f"{user.serve.model}, served by this service ({user.serve.engine}, replicas: {user.serve.replicas})"
    key = f"key in {user.api_key_var}" if user.api_key_var else "no key variable named"
    return f"{user.model} at {user.base_url or 'its provider'}, {key}"


def _judge(config: RolloutConfig) -> str:
    judge = config.evaluation.judge
    preflight.check_judge(config)
    where = f"{judge.model or 'the model that τ² names'} at {judge.base_url or 'its provider'}"
    return f"{where}, asked only about tasks with NL assertions (evaluation.type {config.evaluation.type})"


def _reviewer(config: RolloutConfig) -> str:
    review = config.user.review
    preflight.check_review(config)
    if not review.is_on:
        return "none"
    where = f"{review.model or 'the model that τ² names'} at {review.base_url or 'its provider'}"
    return f"{where}, asked about {review.share:.0%} of the episodes"


def _tape(config: RolloutConfig) -> str:
    tape = config.tape
    if not tape.is_on or tape.path is None:
        return "none"
    if not tape.asks_nobody and not Path(tape.path).exists():
        return f"{tape.path} is made when the service starts"
    preflight.check_tape(config, here=True)
    return f"{tape.path} fits these settings and tasks; mode {tape.mode}"


def _memory(config: RolloutConfig) -> str:
    """Memory of a running episode: of its environment after the gold actions, measured, and of its tokens at most."""
    import tracemalloc

    from rollout_service.policy.context import context_length, only_endpoint_knows
    from rollout_service.record.ledger import BYTES_PER_TOKEN
    from rollout_service.tau2 import domain, fast_evaluation, tasks

    chosen, count = config.tasks, 8
    sizes = {}
    for name in chosen.domains:
        shared = domain.get(name)
        references = tasks.references(name, chosen.chosen_split)[:count]
        fast_evaluation.play_gold(shared.original(), tasks.get(references[0]))
        tracemalloc.start()
        kept = [fast_evaluation.play_gold(shared.original(), tasks.get(reference)) for reference in references]
        sizes[name] = tracemalloc.get_traced_memory()[0] / len(kept) / 1024
        tracemalloc.stop()
    environments = ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items())
    policy = config.policy
    try:
        tokens = "as many as the endpoint takes" if only_endpoint_knows(policy) else f"{context_length(policy):,}"
    except RolloutError:  # the policy's context, above, says why
        tokens = "not known"
    return (
        f"KiB per concurrent episode: environment {environments}; tokens at most {tokens}, {BYTES_PER_TOKEN} bytes each"
    )


def _cluster(address: str | None) -> str:
    if address is None:
        raise NotChecked("no --address is given; without one, collect starts Ray on this machine")
    from rollout_service.cluster import cluster_size

    nodes, cpus, gpus = cluster_size(address)
    return f"{nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
