"""The scripted engine: plays a task's gold actions in tokens, as a model would, but without a model.

Invariant: the engine is deterministic. A turn depends only on the task, the episode's seed and the turn's number, so
any replica can answer any turn. Each token has probability 1, so the log-probs are 0. The engine has no weights: an
update changes only its version, and a turn has the version at which it was finished.
"""

from __future__ import annotations

import asyncio
import functools
import random

import numpy as np
import numpy.typing as npt

from rollout_service.chat.codec import ChatCodec
from rollout_service.config import Script
from rollout_service.config.sampling import Sampling
from rollout_service.errors import WeightError
from rollout_service.policy.base import Generation, RequestError, TurnInfo
from rollout_service.policy.replicas import Occupancy
from rollout_service.policy.weight_history import Names
from rollout_service.policy.weights import Rendezvous, WeightSource
from rollout_service.record.trajectory import TaskRef
from rollout_service.tau2 import gold, tasks

_REASONING = "The next step of the plan."


class ScriptedEngine:
    """Answers requests with the tokens of the next gold step."""

    connects = False

    def __init__(self, script: Script, codec: ChatCodec, version: int = 0) -> None:
        self.version = version
        self._script = script
        self._codec = codec
        self._interrupted = asyncio.Event()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._steps = functools.lru_cache(maxsize=4096)(self._plan)

    async def generate(self, input_ids: npt.NDArray[np.int32], sampling: Sampling, info: TurnInfo) -> Generation:
        """Turn number `info.turn` of the episode. A turn longer than `max_new_tokens` is cut, with reason `length`."""
        if info.task is None:
            raise RequestError("the scripted engine plays tasks; it needs an engine with a model to answer tokens")
        seed, turn = info.seed, info.turn
        loop = asyncio.get_running_loop()
        wait = gold.waiting_time(self._script.latency, random.Random(f"latency:{seed}:{turn}"))
        ready = loop.time() + wait  # a turn takes as long as the script says, including this engine's work
        plan = info.task, info.agent, seed
        if turn == 0:
            await asyncio.to_thread(self._steps, *plan)  # the first turn of a domain parses its tasks, up to a second
        steps = self._steps(*plan)
        tokens = self._written(steps[min(turn, len(steps) - 1)])
        cut = tokens[: sampling.max_new_tokens]
        finish = "stop" if len(cut) == len(tokens) else "length"
        if wait and not await self._wait(ready - loop.time()):
            cut, finish = [], "abort"
        await self._thawed.wait()
        return Generation(
            token_ids=np.asarray(cut, dtype=np.int32),
            logprobs=np.zeros(len(cut), dtype=np.float32),
            weight_versions=np.full(len(cut), self.version, dtype=np.int32),
            finish_reason=finish,
            prompt_tokens=len(input_ids),
            prefix_version=self.version,
            queue_seconds=0.0,  # every turn begins at once
        )

    async def _wait(self, seconds: float) -> bool:
        """Wait. Returns False if it was interrupted before."""
        try:
            await asyncio.wait_for(self._interrupted.wait(), max(0.0, seconds))
        except TimeoutError:
            return True
        return False

    def interrupt(self) -> None:
        """See `Engine`."""
        self._interrupted.set()
        self._interrupted = asyncio.Event()

    def check_freeze(self) -> None:
        """See `Engine`."""

    async def freeze(self) -> None:
        """See `Engine`."""
        self._thawed.clear()

    async def thaw(self) -> None:
        """See `Engine`."""
        self._thawed.set()

    def check(self, source: WeightSource) -> Names:
        """See `Engine`. All weights fit, because there are none."""
        return None

    async def stage(self, source: WeightSource) -> None:
        """See `Engine`."""

    async def load(self, staged: None, version: int, *, keep_cache: bool) -> None:
        """See `Engine`."""
        self.version = version

    async def join(self, rendezvous: Rendezvous, rank: int) -> None:
        """See `Engine`."""
        raise WeightError("The scripted engine has no weights, so it joins no group.", "Use a checkpoint folder.")

    async def leave(self, group: str) -> None:
        """See `Engine`."""

    def occupancy(self) -> Occupancy | None:
        """See `Engine`. There is no model, so there is nothing to fill."""
        return None

    def check_health(self) -> None:
        """See `Engine`."""

    def close(self) -> None:
        """See `Engine`."""

    def _plan(self, task: TaskRef, agent: str, seed: int) -> list[gold.Step]:
        return gold.policy_steps(tasks.get(task), agent, self._script, random.Random(f"policy:{seed}"))

    def _written(self, step: gold.Step) -> list[int]:
        reasoning = _REASONING if self._codec.supports_reasoning else None
        if step.kind != gold.BROKEN:
            return self._codec.encode_turn(step.text, step.calls, reasoning)
        whole = self._codec.encode_turn("", step.calls, reasoning)
        broken = self._codec.decode(whole[:-1]).rpartition("}")
        return [*self._codec.encode_written(broken[0] + broken[2]), whole[-1]]
