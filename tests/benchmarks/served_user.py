"""The user simulator that the service serves itself, beside the policy on a machine's GPUs: what it costs.

Telecom episodes, whose user has tools, on SGLang. `python -m tests.benchmarks.served_user CASE …`, where a case is
USER:PLACE. USER is a model's folder, or `caller`: a model in the shape of the policy that calls a tool after each
message of the agent. PLACE is the number of its replicas, each on a GPU of its own, or `shared`: one replica on the
policy's GPU. Cases for which the machine has GPUs start together; each is measured alone.

The policy has random weights in the shape of Qwen3-4B and never ends a turn, so its tokens are the same in all cases.
`BENCHMARK_ENGINE` holds more engine arguments as JSON. Without a GPU, everything is tiny, and SGLang runs on the CPU.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table

from rollout_service import RolloutClient, RolloutConfig
from rollout_service.config.user_server import USER_KEY_VAR
from rollout_service.gateway.tokens import new_token
from rollout_service.record.trajectory import Trajectory
from tests.benchmarks import gpu_load, random_policy
from tests.benchmarks.random_policy import ON_GPU, SHAPE
from tests.support import family_templates, tiny_model

PORT = 31018
"""Of Serve's HTTP server."""
CASES = ("caller:1", "caller:2", "caller:shared")
SLOTS, EPISODES, TURNS, TURN_TOKENS = (64, 128, 6, 120) if ON_GPU else (4, 4, 2, 20)
CACHE: dict[str, dict[str, Any]] = {"own": {}, "shared": {"mem_fraction_static": 0.85, "max_total_tokens": 150_000}}
"""Arguments of an engine that say how much it caches: a fifth of a GPU's memory where two engines share it.
SGLang takes its share of what it finds free at its start, and two that start together find the same."""
GPUS = {"own": (1.0, 1.0), "shared": (0.7, 0.3)}
_CALL = "[CALLS]reboot_device[ID]abcdefghi[ARGS]{}"
_TEXT = "I did that now, but there is no new data yet"


@dataclass
class Case:
    """One service, and what its episodes took."""

    user: str
    place: str
    name: str
    client: RolloutClient | None = None
    trajectories: list[Trajectory] = field(default_factory=list)
    seconds: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    """Busy share of each GPU while it was measured, 0 to 1."""
    gpus: dict[str, set[str]] = field(default_factory=dict)
    """GPUs of `policy` and `user`."""

    @property
    def replicas(self) -> int:
        return 1 if self.place == "shared" else int(self.place)

    @property
    def needs(self) -> int:
        """GPUs."""
        return 1 if self.place == "shared" else 1 + self.replicas


def run(asked: Iterable[str] = CASES) -> bool:
    """Measure the cases and print the table. Whether all episodes were played."""
    cases = [Case(*text.rsplit(":", 1), name=f"served-{number}") for number, text in enumerate(asked)]
    with tempfile.TemporaryDirectory() as folder:
        models = _models(Path(folder))
        ray.init("local", include_dashboard=False, log_to_driver=False, namespace="rollout_service")
        room = torch.cuda.device_count() if ON_GPU else 4
        while waiting := [case for case in cases if not case.seconds]:
            together = _fitting(waiting, room)
            with _started(together, models):
                for case in together:
                    _measure(case)
                    _show([case])
        ray.shutdown()
    _show(cases)
    return all(len(case.trajectories) == EPISODES for case in cases)


def _fitting(cases: list[Case], room: int) -> list[Case]:
    chosen: list[Case] = []
    for case in cases:
        if sum(other.needs for other in [*chosen, case]) <= room:
            chosen.append(case)
    if not chosen:
        sys.exit(f"{cases[0].user}:{cases[0].place} needs {cases[0].needs} GPUs, and there are {room}.")
    return chosen


def _models(folder: Path) -> dict[str, str]:
    """Make the policy and the caller."""
    tokenizer = family_templates.tokenizer("ids of nine characters")
    tokenizer.eos_token = "</s>"
    says = {"[/INST]": _CALL, "[/RESULT]": _TEXT}
    policy = random_policy.make(folder / "policy")
    with torch.device("cuda" if ON_GPU else "cpu"):
        caller = tiny_model.make_speaker(folder / "caller", tokenizer, says, **SHAPE)
    if ON_GPU:
        torch.cuda.empty_cache()
    return {"policy": policy, "caller": str(caller)}


@contextlib.contextmanager
def _started(cases: list[Case], models: dict[str, str]) -> Iterator[None]:
    """Start the services of these cases at the same time, and close them."""
    begun = time.monotonic()
    os.environ.setdefault(USER_KEY_VAR, new_token())  # before several threads would each make one
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(len(cases)) as threads:
        configs = [_config(case, models) for case in cases]
        starts = [threads.submit(RolloutClient, config=config) for config in configs]
        for case, start in zip(cases, starts, strict=True):
            case.client = stack.enter_context(start.result())
            case.gpus = {whose: gpu_load.gpus_of(f"{case.name}-{whose}") for whose in ("policy", "user")}
        print(f"{len(cases)} services started in {time.monotonic() - begun:.0f} s", flush=True)
        yield


def _config(case: Case, models: dict[str, str]) -> RolloutConfig:
    kind = "shared" if case.place == "shared" else "own"
    overrides: dict[str, Any] = {
        "service.name": case.name,
        "service.actors": 4 if ON_GPU else 1,
        "service.slots": SLOTS // (4 if ON_GPU else 1),
        "service.max_buffered_groups": EPISODES,
        "tasks.domain": "telecom",
        "limits.max_turns": TURNS,
        "policy.engine": "sglang",
        "policy.model": models["policy"],
        "policy.sampling.max_new_tokens": TURN_TOKENS,
        "user.temperature": 0.7,
        "user.serve.model": models.get(case.user, case.user),
        "user.serve.engine": "sglang",
        "user.serve.replicas": case.replicas,
        "user.serve.http_port": PORT,
    }
    for section, gpus in zip(("policy", "user.serve"), GPUS[kind], strict=True):
        overrides |= random_policy.engine(section, gpus, CACHE[kind] if ON_GPU else {})
    return RolloutConfig.load(overrides=overrides, environ={})


def _measure(case: Case) -> None:
    assert case.client is not None
    case.client.collect(SLOTS // 2, seed=1, progress=False)  # fills the prefix caches, and the pacer finds its limit
    with gpu_load.measured() as case.busy:
        begun = time.monotonic()
        case.trajectories = list(case.client.collect(EPISODES, seed=2, progress=False))
        case.seconds = time.monotonic() - begun


def _show(cases: list[Case]) -> None:
    titles = ("user", "GPUs", "replicas", "episodes", "seconds", "episodes/h", "user requests", "with calls", "failed")
    more = ("policy tok/s", "user tok/s", "busy: policy", "busy: user", "user's GPU time", "user's turn time")
    table = Table(*titles, *more, title="A served user simulator beside the policy, telecom")
    for case in cases:
        table.add_row(*_row(case))
    Console(width=200).print(table)


def _row(case: Case) -> list[str]:
    played, seconds = case.trajectories, case.seconds
    usages = [each.user_usage for each in played]
    calls = sum(bool(m.get("tool_calls")) for each in played for m in each.messages if m["role"] == "user")
    policy_tokens = sum(each.policy_token_count for each in played)
    users, turns = (sum(getattr(each.timing, f"{whose}_seconds") for each in played) for whose in ("user", "policy"))
    return [
        Path(case.user).name,
        "shared" if case.place == "shared" else "its own",
        str(case.replicas),
        str(len(played)),
        f"{seconds:.0f}",
        f"{len(played) / seconds * 3600:,.0f}",
        f"{sum(usage.requests for usage in usages):,}",
        f"{calls:,}",
        str(sum(usage.failed_requests for usage in usages)),
        f"{policy_tokens / seconds:,.0f}",
        f"{sum(usage.completion_tokens or 0 for usage in usages) / seconds:,.0f}",
        *(gpu_load.shown(case.busy, case.gpus[whose]) for whose in ("policy", "user")),
        _users_share(case),
        f"{users / (users + turns):.0%}",
    ]


def _users_share(case: Case) -> str:
    """The user simulator's part of all GPU busy time; unknown where it shares the policy's GPU."""
    policy, user = (sum(case.busy.get(gpu, 0.0) for gpu in case.gpus[whose]) for whose in ("policy", "user"))
    return (
        f"{user / (policy + user):.0%}" if policy + user and not case.gpus["policy"] & case.gpus["user"] else "unknown"
    )


if __name__ == "__main__":
    sys.exit(not run(sys.argv[1:] or CASES))
