"""Episodes whose prefixes do not fit: what admission by the replicas' memory is worth, and that it costs nothing else.

The same episodes by turns with `policy.admission` set to `cache` and to `slots`, each time on a service of its own:
first with ample memory, which also tells how long contexts become, then with memory for half of the slots' episodes.
The user is a server beside it that answers at once, with long texts. The model has random weights in the shape of
Qwen3-4B, and its turns are as long as they may be.

`python -m tests.benchmarks admission`, on a GPU or, with a tiny model, on a CPU. `BENCHMARK_ENGINE` holds more engine
arguments as JSON, `BENCHMARK_MODEL` another shape's settings, `BENCHMARK_ADMISSION` other numbers of this benchmark:
`slots`, `rounds` (episodes by slot), `turns`, `turn_tokens`, `user_words`, `repeats`.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import torch

from rollout_service import RolloutClient, RolloutConfig
from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2 import compat
from tests.benchmarks import traffic
from tests.benchmarks.measure import Row, cpu_seconds_of, family, show
from tests.benchmarks.served_user import SHAPE
from tests.support import tiny_model
from tests.support.openai_server import Brain, Message, OpenAIServer

ON_GPU = torch.cuda.is_available()
ENGINE: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_ENGINE", "{}"))
MODEL: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_MODEL", "null")) or (
    SHAPE if ON_GPU else {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
)
NUMBERS: dict[str, int] = (
    {"slots": 64, "rounds": 8, "turns": 10, "turn_tokens": 80, "user_words": 350, "repeats": 2}
    if ON_GPU
    else {"slots": 12, "rounds": 4, "turns": 6, "turn_tokens": 24, "user_words": 200, "repeats": 1}
) | json.loads(os.environ.get("BENCHMARK_ADMISSION", "{}"))
ACTORS = 4 if ON_GPU else 1
LEAST_GAIN, LEAST_KEPT = 1.5, 0.98

_WORDS = (
    "order",
    "refund",
    "address",
    "card",
    "item",
    "size",
    "colour",
    "street",
    "delivery",
    "again",
    "please",
    "where",
)

Way = Literal["cache", "slots"]


@dataclass(frozen=True)
class Measured(traffic.Measured):
    """What one service made of the episodes."""

    engine_seconds: float = 0.0
    """CPU seconds of the engine's processes."""
    context: float = 0.0
    """Mean tokens of a context at its end."""
    shared: float = 0.0
    """Mean tokens of it that the first turn found in the cache."""

    def __add__(self, other: Measured) -> Measured:
        sums = (self.output_tokens + other.output_tokens, self.prompt_tokens + other.prompt_tokens)
        more = (self.cached_tokens + other.cached_tokens, self.seconds + other.seconds)
        busy = self.engine_seconds + other.engine_seconds
        return Measured(*sums, *more, busy, max(self.context, other.context), max(self.shared, other.shared))

    @classmethod
    def of(cls, trajectories: list[Trajectory], seconds: float, engine_seconds: float) -> Measured:
        """Those of a run."""
        assert not [each.fault for each in trajectories if each.fault is not None]
        return cls(
            sum(each.policy_token_count for each in trajectories),
            sum(each.prompt_token_count for each in trajectories),
            sum(each.cached_token_count for each in trajectories),
            seconds,
            engine_seconds,
            sum(len(each.segments[0].token_ids) for each in trajectories) / len(trajectories),
            sum(each.turns[0].cached_tokens for each in trajectories) / len(trajectories),
        )


_NOTHING = Measured(0, 0, 0, 0.0)


def run() -> bool:
    """Measure all four cases and print the table."""
    print(f"{NUMBERS}, model {MODEL}, {'GPU' if ON_GPU else 'CPU'}", flush=True)
    with tempfile.TemporaryDirectory() as folder, OpenAIServer(_talker()) as user:
        with torch.device("cuda" if ON_GPU else "cpu"):
            model = str(tiny_model.make(Path(folder) / "model", **MODEL))
        if ON_GPU:
            torch.cuda.empty_cache()
        ray.init("local", include_dashboard=False, log_to_driver=False, namespace="rollout_service")
        ample = _compared(model, user.base_url, None)
        own = ample["slots"].context - ample["slots"].shared
        tokens = int(ample["slots"].shared + own * NUMBERS["slots"] / 2)
        half = _compared(model, user.base_url, tokens)
        ray.shutdown()
    title = (
        f"Admission: {NUMBERS['slots']} slots, contexts of {ample['slots'].context:.0f} tokens at their ends, of which "
        f"{own:.0f} are the episode's own; half of the memory: {tokens} tokens"
    )
    rows = [*_rows("ample memory", ample, LEAST_KEPT), *_rows("half of it", half, LEAST_GAIN)]
    return show(title, rows)


def _compared(model: str, user: str, tokens: int | None) -> dict[Way, Measured]:
    """Both ways by turns.

    Args:
        tokens: that the memory holds; None: as the engine's arguments say.
    """
    found: dict[Way, Measured] = {"slots": _NOTHING, "cache": _NOTHING}
    for repeat in range(NUMBERS["repeats"]):
        for way in found:
            measured = _measured(model, user, way, tokens, repeat)
            found[way] += measured
            memory = "ample memory" if tokens is None else f"{tokens} tokens"
            print(f"{memory}, {way}: {measured.rate:,.0f} tokens/s, {measured.hit_share:.3f} cached", flush=True)
    return found


def _measured(model: str, user: str, way: Way, tokens: int | None, seed: int) -> Measured:
    with RolloutClient(config=_config(model, user, way, tokens)) as client:
        client.collect(NUMBERS["slots"] // 4, seed=1000 + seed, progress=False)  # Serve's and the engine's first steps
        engines = [each for each in family() if " ".join(each.cmdline()).startswith("sglang::scheduler")]
        begun, busy = time.monotonic(), cpu_seconds_of(engines)
        trajectories, limits = [], set()
        for group in client.stream(NUMBERS["slots"] * NUMBERS["rounds"], seed=seed):
            trajectories += list(group)
            admission = client.status()["admission"]
            limits.add(admission and (admission["limit"], admission["lost_share"]))
        seconds, busy = time.monotonic() - begun, cpu_seconds_of(engines) - busy
    if way == "cache":
        print(f"  limits and shares of time lost: {sorted(limits, key=str)}", flush=True)
    return Measured.of(trajectories, seconds, busy)


def _config(model: str, user: str, way: Way, tokens: int | None) -> RolloutConfig:
    overrides: dict[str, Any] = {
        "service.name": "admission",
        "service.actors": ACTORS,
        "service.slots": NUMBERS["slots"] // ACTORS,
        "service.max_buffered_groups": NUMBERS["slots"] * NUMBERS["rounds"],
        "tasks.domain": "mock",
        "policy.engine": "sglang",
        "policy.model": model,
        "policy.admission": way,
        "policy.sampling": {"max_new_tokens": NUMBERS["turn_tokens"], "ignore_eos": True},
        "user.model": "openai/talker",
        "user.base_url": user,
    }
    arguments = dict(ENGINE)
    if not ON_GPU:
        from tests.support import sglang

        arguments = sglang.ENGINE_ARGUMENTS | arguments
        overrides |= {"policy.env_vars": sglang.ENVIRONMENT, "policy.gpus_per_replica": 0.0}
    if tokens is not None:
        arguments["max_total_tokens"] = tokens
    return RolloutConfig.load(overrides=overrides | {"policy.engine_arguments": arguments}, environ={})


def _talker() -> Brain:
    """A user who writes long texts, another one each time, and stops after the last turn."""
    chance = random.Random(0)

    def brain(messages: list[Message], tools: list[dict[str, Any]]) -> Message:
        heard = sum(message["role"] == "user" for message in messages) - 1
        words = " ".join(chance.choices(_WORDS, k=NUMBERS["user_words"]))
        return {"content": compat.STOP if heard >= NUMBERS["turns"] else words}

    return brain


def _rows(what: str, found: dict[Way, Measured], least: float) -> list[Row]:
    cache, slots = found["cache"], found["slots"]

    def row(text: str, value: Callable[[Measured], float], style: str, target: float | None = None) -> Row:
        ratio = value(cache) / value(slots)
        both = (style.format(value(cache)), style.format(value(slots)), f"{ratio:.3f}")
        return Row(f"{what}: {text}", *both, f"≥ {target}" if target else "", not target or ratio >= target)

    rows = [
        row("output tokens/s", lambda it: it.rate, "{:,.0f}", least),
        row("share of prompt tokens cached", lambda it: it.hit_share, "{:.3f}"),
    ]
    if not ON_GPU:  # this does not hang on what else the machine does
        rows.append(
            row("output tokens per CPU s of the engine", lambda it: it.output_tokens / it.engine_seconds, "{:,.0f}")
        )
    return rows
