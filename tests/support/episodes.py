"""Runs episodes in this process: real τ², real codec, the scripted engine, no Ray."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.engines.scripted import ScriptedEngine
from rollout_service.chat.codec import ChatCodec
from rollout_service.config import RolloutConfig
from rollout_service.pacing.endpoints import Side
from rollout_service.pacing.gate import Gate
from rollout_service.policy.base import Generation, Policy, TurnInfo
from rollout_service.record.trajectory import TaskRef, Trajectory
from rollout_service.tau2 import tasks
from rollout_service.tau2.episode import EpisodeRequest, EpisodeRunner


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """A running loop in a thread of its own, as an actor has one."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


@functools.cache
def codec(tokenizer: str | None = None) -> ChatCodec:
    return ChatCodec.load(tokenizer)


class LocalPolicy:
    """An engine, called directly."""

    def __init__(self, config: RolloutConfig) -> None:
        self.engine = ScriptedEngine(config.policy.script, codec(config.policy.tokenizer_name))
        self.prompts: list[list[int]] = []

    async def generate(self, input_ids: Any, sampling: Any, session_id: str, info: TurnInfo) -> Generation:
        self.prompts.append(input_ids.tolist())
        return await self.engine.generate(input_ids, sampling, info)


class WrittenTurns:
    """A policy that writes these texts, one a turn, and the last of them again and again."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    async def generate(self, input_ids: Any, sampling: Any, session_id: str, info: TurnInfo) -> Generation:
        text = self.texts[min(info.turn, len(self.texts) - 1)]
        ids = np.asarray([*codec().encode_written(text), codec().end_of_turn_id], np.int32)
        return Generation(ids, np.full(len(ids), -0.5, np.float32), np.zeros(len(ids), np.int32), "stop")


def written(name: str, **arguments: Any) -> str:
    """A call as the embedded tokenizer's template writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def settings(**overrides: Any) -> RolloutConfig:
    """A configuration; `limits__max_turns=3` sets limits.max_turns."""
    return RolloutConfig.load(overrides={k.replace("__", "."): v for k, v in overrides.items()}, environ={})


def runner(
    config: RolloutConfig, policy: Policy | None = None, gates: Mapping[Side, Gate] | None = None
) -> EpisodeRunner:
    tokens = codec(config.policy.tokenizer_name)
    return EpisodeRunner(config, tokens, policy or LocalPolicy(config), event_loop(), gates)


def request(task: TaskRef, seed: int = 0, name: str = "t", sample: int = 0) -> EpisodeRequest:
    return EpisodeRequest(f"{name}-{sample}", "c", name, sample, task, seed)


def task(domain: str, position: int = 0, split: str = "base") -> TaskRef:
    return tasks.references(domain, split)[position]


def run(domain: str, position: int = 0, seed: int = 0, **overrides: Any) -> Trajectory:
    """One scripted episode of the domain's task at `position`."""
    return runner(settings(**overrides)).run(request(task(domain, position), seed))
