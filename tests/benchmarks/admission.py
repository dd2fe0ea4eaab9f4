"""Episodes whose prefixes do not fit: what admission by the replicas' memory is worth, and that it costs nothing else.

The same episodes with `policy.admission` set to `cache` and to `slots`, each on a service of its own: first with ample
memory, which also tells how long contexts become, then with memory for half of the slots' episodes. With two GPUs both
ways are measured at the same time, each on its own GPU, of the same kind; with fewer, one after the other.

The user is a server in this process that answers at once, in texts as long as a tool's results. The policy's turns are
as long as a tool call. The first episodes begin together, before anything is known of them. When as many have ended as
there are slots, the steady state begins, to which the targets apply; what was before is shown too.

`python -m tests.benchmarks admission`, on a GPU or, with a tiny model, on a CPU. `random_policy.py` says what
`BENCHMARK_ENGINE` and `BENCHMARK_MODEL` are. `BENCHMARK_ADMISSION` holds other numbers of this benchmark as JSON:
`slots`, `turns` and `words` (means, see `talking_user.py`), `turn_tokens` and `seconds` (of the steady state).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import ray

from rollout_service import RolloutClient, RolloutConfig
from rollout_service.record.trajectory import Trajectory
from tests.benchmarks import random_policy, side_by_side
from tests.benchmarks.measure import Row, cpu_seconds_of, family, show
from tests.benchmarks.random_policy import ON_GPU
from tests.benchmarks.talking_user import TalkingUser

NUMBERS: dict[str, int] = (
    {"slots": 48, "turns": 7, "turn_tokens": 50, "words": 660, "seconds": 50}
    if ON_GPU
    else {"slots": 8, "turns": 6, "turn_tokens": 16, "words": 200, "seconds": 60}
) | json.loads(os.environ.get("BENCHMARK_ADMISSION", "{}"))
MOST_ACTORS = 4 if ON_GPU else 1
LEAST_GAIN, LEAST_KEPT = 1.5, 0.98

Way = Literal["cache", "slots"]
WAYS: tuple[Way, Way] = ("slots", "cache")


@dataclass(frozen=True)
class Measured:
    """What one service made of the episodes."""

    first_rate: float
    """Output tokens per second until as many episodes have ended as there are slots."""
    rate: float
    """Output tokens per second in the steady state."""
    hit_share: float
    """Share of the prompt tokens that came from the prefix cache, of the episodes that ended in the steady state."""
    engine_rate: float
    """Output tokens per CPU second of the engine's processes in the steady state."""
    context: float
    """Mean tokens of a context at its end."""
    shared: float
    """Mean tokens of it that the first turn found in the cache."""


def run() -> bool:
    """Measure all four cases and print the table."""
    print(f"{NUMBERS}, model {random_policy.SHAPE}, {'GPU' if ON_GPU else 'CPU'}", flush=True)
    with tempfile.TemporaryDirectory() as folder, TalkingUser(NUMBERS["turns"], NUMBERS["words"]) as user:
        model = random_policy.make(Path(folder) / "model")
        ray.init("local", include_dashboard=False, log_to_driver=False, namespace="rollout_service")
        ample = _compared(model, user, None)
        own = mean(it.context - it.shared for it in ample.values())
        shared = mean(it.shared for it in ample.values())
        tokens = int(shared + own * NUMBERS["slots"] / 2)
        half = _compared(model, user, tokens)
        ray.shutdown()
    title = (
        f"Admission: {NUMBERS['slots']} slots, contexts of {own + shared:.0f} tokens at their ends, of which {own:.0f} "
        f"are the episode's own; half of the memory: {tokens} tokens"
    )
    return show(title, [*_rows("ample memory", ample, LEAST_KEPT), *_rows("half of it", half, LEAST_GAIN)])


def _compared(model: str, user: TalkingUser, tokens: int | None) -> dict[Way, Measured]:
    """Both ways.

    Args:
        tokens: that the memory holds; None: as the engine's arguments say.
    """
    memory = "ample memory" if tokens is None else f"{tokens} tokens"
    configs = {way: _config(model, user, way, tokens) for way in WAYS}
    return side_by_side.measured(configs, lambda way, client: _measured(memory, way, client, user))


def _measured(memory: str, way: Way, client: RolloutClient, user: TalkingUser) -> Measured:
    client.collect(NUMBERS["slots"] // 4, seed=1000, progress=False)  # Serve's and the engine's first steps
    engines = [each for each in family() if " ".join(each.cmdline()).startswith("sglang::scheduler")]
    limits: set[Any] = set()
    ended: list[Trajectory] = []

    def play(done: Callable[[], bool]) -> tuple[float, float]:
        """Seconds until it is done, and output tokens per second."""
        begun = time.monotonic()
        while not done():
            ended.extend(next(stream))
            admission = client.status()["admission"]
            limits.add(admission and admission["limit"])
        until = time.monotonic()
        return until - begun, user.turns_between(way, begun, until) * NUMBERS["turn_tokens"] / (until - begun)

    stream = client.stream(endless=True, seed=0)
    seconds, first = play(lambda: len(ended) >= NUMBERS["slots"])
    print(f"{memory}, {way}: {first:,.0f} tokens/s in the first {seconds:.0f} s", flush=True)
    before, busy, until = len(ended), cpu_seconds_of(engines), time.monotonic() + NUMBERS["seconds"]
    seconds, rate = play(lambda: time.monotonic() >= until)
    busy = cpu_seconds_of(engines) - busy
    stream.close()
    assert not [each.fault for each in ended if each.fault is not None]
    cached, prompts = (
        sum(getattr(each, f"{kind}_token_count") for each in ended[before:]) for kind in ("cached", "prompt")
    )
    print(f"{memory}, {way}: then {rate:,.0f} tokens/s, {cached / prompts:.3f} cached, limits {limits}", flush=True)
    return Measured(
        first,
        rate,
        cached / prompts,
        rate * seconds / max(1e-9, busy),
        mean(len(each.segments[0].token_ids) for each in ended),
        mean(each.turns[0].cached_tokens for each in ended),
    )


def _config(model: str, user: TalkingUser, way: Way, tokens: int | None) -> RolloutConfig:
    actors = side_by_side.actors(len(WAYS), MOST_ACTORS)
    overrides: dict[str, Any] = {
        "service.name": f"admission-{way}",
        "service.actors": actors,
        "service.slots": NUMBERS["slots"] // actors,
        "service.max_buffered_groups": 10_000,
        "tasks.domain": "mock",
        "policy.engine": "sglang",
        "policy.model": model,
        "policy.admission": way,
        "policy.sampling": {"max_new_tokens": NUMBERS["turn_tokens"], "ignore_eos": True},
    }
    memory = {} if tokens is None else {"max_total_tokens": tokens}
    overrides |= random_policy.engine("policy", arguments=memory) | user.settings(way)
    return RolloutConfig.load(overrides=overrides, environ={})


def _rows(what: str, found: dict[Way, Measured], least: float) -> list[Row]:
    cache, slots = found["cache"], found["slots"]

    def row(text: str, value: Callable[[Measured], float], style: str, target: float | None = None) -> Row:
        ratio = value(cache) / value(slots)
        both = (style.format(value(cache)), style.format(value(slots)), f"{ratio:.3f}")
        return Row(f"{what}: {text}", *both, f"≥ {target}" if target else "", not target or ratio >= target)

    rows = [
        row("output tokens/s", lambda it: it.rate, "{:,.0f}", least),
        row("the same of the first episodes", lambda it: it.first_rate, "{:,.0f}"),
        row("share of prompt tokens cached", lambda it: it.hit_share, "{:.3f}"),
    ]
    if not ON_GPU:  # this does not hang on what else the machine does
        rows.append(row("output tokens per CPU s of the engine", lambda it: it.engine_rate, "{:,.0f}"))
    return rows
