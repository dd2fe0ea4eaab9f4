"""Checks a machine and a configuration before a collection.

Invariant: it changes nothing, starts nothing and spends nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import rollout_service.preflight as preflight
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError
from rollout_service.redaction import redact


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    text: str


def examine(config: RolloutConfig, address: str | None = None) -> list[Finding]:
    """Check everything that a collection with `config` needs, and the cluster at `address` if one is given."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("machine", _machine),
        ("packages", _packages),
        ("τ²-bench", _tau2),
        ("tasks", lambda: _tasks(config)),
        ("policy", lambda: _policy(config)),
        ("policy's tokenizer", lambda: _codec(config)),
        ("policy's context", lambda: _context(config)),
        ("user simulator", lambda: _user(config)),
        ("judge", lambda: _judge(config)),
        ("memory", lambda: _memory(config)),
    ]
    if address is not None:
        checks.append(("cluster", lambda: _cluster(address)))
    return [_finding(what, check) for what, check in checks]


def _finding(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, redact(check()))
    except RolloutError as error:
        return Finding(what, False, str(error))
    except Exception as error:
        return Finding(what, False, redact(f"{type(error).__name__}: {error}"))


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
    return f"{config.tasks.domain}/{config.tasks.split}: {len(preflight.check_tasks(config))} tasks"


def _policy(config: RolloutConfig) -> str:
    policy = config.policy
    if policy.engine == "scripted":
        return "scripted: plays the tasks' gold actions, no model"
    if policy.engine == "http":
        return f"http: {policy.model or 'whatever model'} is served elsewhere, at policy.url"
    return f"{policy.engine}: serves {policy.model}"


def _codec(config: RolloutConfig) -> str:
    codec = preflight.load_codec(config)
    history = "rewrites history" if codec.rewrites_history else "extends history"
    return f"{codec.name}: proved, template {history}, turns end with {codec.end_of_turn}"


def _context(config: RolloutConfig) -> str:
    from rollout_service.policy.context import context_length

    policy = preflight.with_context_length(config, retry_seconds=0).policy
    return f"{context_length(policy):,} tokens, prompt and turn together"


def _user(config: RolloutConfig) -> str:
    user = config.user
    if config.user_kind == "dummy":
        return "none: the solo agent works alone"
    if config.user_kind == "scripted":
        return "scripted"
    preflight.check_user(config)
    key = f"key in {user.api_key_var}" if user.api_key_var else "no key variable named"
    return f"{user.model} at {user.base_url or 'its provider'}, {key}"


def _judge(config: RolloutConfig) -> str:
    judge = config.evaluation.judge
    preflight.check_judge(config)
    where = f"{judge.model or 'the model that τ² names'} at {judge.base_url or 'its provider'}"
    return f"{where}, asked only about tasks with NL assertions (evaluation.type {config.evaluation.type})"


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
        references = tasks.references(name, chosen.split)[:count]
        fast_evaluation.play_gold(shared.original(), tasks.get(references[0]))
        tracemalloc.start()
        kept = [fast_evaluation.play_gold(shared.original(), tasks.get(reference)) for reference in references]
        sizes[name] = tracemalloc.get_traced_memory()[0] / len(kept) / 1024
        tracemalloc.stop()
    environments = ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items())
    policy = config.policy
    tokens = "as many as the endpoint takes" if only_endpoint_knows(policy) else f"{context_length(policy):,}"
    return (
        f"KiB per concurrent episode: environment {environments}; tokens at most {tokens}, {BYTES_PER_TOKEN} bytes each"
    )


def _cluster(address: str) -> str:
    from rollout_service.cluster import cluster_size

    nodes, cpus, gpus = cluster_size(address)
    return f"{nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
