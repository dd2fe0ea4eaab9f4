"""Whole episodes with real families' tokenizers on the transformers engine: `python -m tests.families.episodes`.

Invariant: the engine is the real one. The model computes every log-prob, its stop tokens end every turn, and its prefix
cache works; a gold turn replaces only the choice of each token. For each family it plays τ²-bench's tasks with gold
turns, which must be rewarded, and some with turns that the random model samples itself. `verify` audits all of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from pydantic import PrivateAttr

from deploy.engines import batch
from deploy.engines.packed import sample
from deploy.engines.scripted import ScriptedEngine
from deploy.engines.transformers import TransformersEngine
from rollout_service.audit.verify import verify
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.suitability import check_suits
from rollout_service.config import RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2.episode import EpisodeRunner
from tests.families.page import write_table
from tests.families.shared import FOLDER, families, real_tokenizer
from tests.support import episodes, tiny_model

PLAYED: list[tuple[str, dict[str, Any]]] = [
    ("qwen3-coder", {}),
    ("qwen3.6", {"preserve_thinking": True}),
    ("glm-4.6", {}),
    ("gpt-oss", {"reasoning_effort": "high"}),
    ("llama-3.1", {"tools_in_user_message": False}),
    ("kimi-k2", {}),
    ("minimax-m2", {}),
    ("deepseek-v3.1", {}),
    ("mistral-small-3.2", {}),
    ("nemotron-3-nano", {}),
]
"""Families, and the template arguments that they are played with."""

HEADER = (
    "| family | template arguments | history | gold episodes | reward 1.0 | free episodes | turns | sampled tokens "
    "| violations |"
)

_LOSSES = ["tools", "text_beside_calls"]


class Dictated(Sampling):
    """Sampling of a turn whose tokens are given. The log-probs are still the model's."""

    _left: Iterator[int] = PrivateAttr(default_factory=lambda: iter(()))

    @classmethod
    def of(cls, sampling: Sampling, tokens: Sequence[int]) -> Dictated:
        made = cls(**sampling.model_dump())
        made._left = iter(tokens)
        return made


def _choose(logits: torch.Tensor, settings: Sequence[Sampling]) -> tuple[list[int], list[float]]:
    """`packed.sample`, but for the rows whose tokens are dictated."""
    tokens, logprobs = sample(logits, settings)
    for row, how in enumerate(settings):
        if isinstance(how, Dictated):
            tokens[row] = next(how._left)
            logprobs[row] = float((logits[row] / how.temperature).log_softmax(-1)[tokens[row]])
    return tokens, logprobs


class GoldPolicy:
    """The transformers engine. It samples the gold turns of the script, or what the model likes."""

    def __init__(self, config: RolloutConfig, codec: ChatCodec) -> None:
        self.engine = TransformersEngine(config.policy)
        self._script = ScriptedEngine(config.policy.script, codec)
        self._choice = mock.patch.object(batch, "sample", _choose)
        self._choice.start()
        self.is_free = False

    async def generate(self, input_ids: Any, sampling: Sampling, session_id: str, info: TurnInfo) -> Generation:
        """One turn.

        Raises:
            AssertionError: the engine ended a gold turn before or after its last token.
        """
        if self.is_free:
            return await self.engine.generate(input_ids, sampling, info)
        gold = (await self._script.generate(input_ids, sampling, info)).token_ids
        made = await self.engine.generate(input_ids, Dictated.of(sampling, gold.tolist()), info)
        assert np.array_equal(made.token_ids, gold), (made.token_ids, gold)
        assert made.finish_reason == "stop"
        return made

    def close(self) -> None:
        """End the engine."""
        self.engine.close()
        self._choice.stop()


@dataclass
class Played:
    """What became of the episodes of one family in one history mode."""

    gold: int = 0
    rewarded: int = 0
    free: int = 0
    turns: int = 0
    tokens: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def add(self, trajectory: Trajectory, *, is_gold: bool) -> None:
        """Count an episode, after an audit."""
        self.gold += is_gold
        self.free += not is_gold
        self.rewarded += is_gold and trajectory.reward == 1.0
        self.turns += len(trajectory.turns)
        self.tokens += sum(int(segment.loss_mask.sum()) for segment in trajectory.segments)
        ((_, violations),) = verify([trajectory])
        self.wrong.update(map(str, violations))
        if trajectory.fault is not None:
            self.wrong[f"fault: {trajectory.fault.message[:300]}"] += 1


class Lab:
    """One family's tokenizer, codec and random model."""

    def __init__(self, tokenizer: Any, folder: Path, arguments: dict[str, Any], **settings: Any) -> None:
        tiny_model.make(folder, tokenizer=tokenizer, hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
        self._settings = functools.partial(
            episodes.settings,
            policy__engine="transformers",
            policy__model=str(folder),
            policy__accepted_losses=_LOSSES,
            policy__template_arguments=arguments,
            policy__sampling__max_new_tokens=1024,
            **settings,
        )
        config = self._settings()
        self.codec = ChatCodec.of(config.policy)
        check_suits(self.codec, config)
        self._policy = GoldPolicy(config, self.codec)

    def play(self, history: str, domains: Sequence[str], tasks: int, free: int = 0, together: int = 4) -> Played:
        """Play the first `tasks` tasks of each domain with gold turns, and `free` ones with the model's own.

        Args:
            together: number of episodes that run at a time.
        """
        played = Played()
        for is_gold, count in ((True, tasks), (False, free)):
            self._policy.is_free = not is_gold
            limits: dict[str, Any] = {} if is_gold else {"limits__max_turns": 4, "policy__sampling__max_new_tokens": 48}
            config = self._settings(policy__history=history, **limits)
            runner = EpisodeRunner(config, self.codec, self._policy, episodes.event_loop())
            asked = [episodes.request(episodes.task(domain, place)) for domain in domains for place in range(count)]
            with ThreadPoolExecutor(together) as pool:
                for trajectory in pool.map(runner.run, asked):
                    made = trajectory.provenance
                    assert made.tool_parser == self.codec.tool_parser
                    assert made.template_arguments == self.codec.template_arguments
                    played.add(trajectory, is_gold=is_gold)
        return played

    def close(self) -> None:
        """End the engine."""
        self._policy.close()


def _rows(name: str, arguments: dict[str, Any], options: argparse.Namespace) -> list[tuple[str, bool]]:
    """The table's rows of a family, each with whether anything went wrong."""
    torch.set_num_threads(1)
    given = f"`{json.dumps(arguments)}`" if arguments else ""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(real_tokenizer(name), Path(folder), arguments, policy__engine_arguments={"device": options.device})
        for history in ("append", "template"):
            started = time.perf_counter()
            found = lab.play(history, ("retail", "telecom"), options.tasks, options.free, options.together)
            for problem, times in found.wrong.items():
                print(f"{name} {given} {history}: {times} × {problem}", file=sys.stderr)
            counts = found.gold, found.rewarded, found.free, found.turns, found.tokens, found.wrong.total()
            print(f"{name} {history}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            row = " | ".join((name, given, history, *(f"{count:,}" for count in counts)))
            rows.append((f"| {row} |", found.wrong.total() > 0 or found.rewarded < found.gold))
        lab.close()
    return rows


def main() -> None:
    """Play, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"families; none: {', '.join(name for name, _ in PLAYED)}")
    parser.add_argument("--tasks", type=int, default=10, help="gold episodes in each domain and history mode")
    parser.add_argument("--free", type=int, default=2, help="episodes that the model plays itself, in each as well")
    parser.add_argument("--together", type=int, default=4, help="episodes at a time")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time, each in a process of its own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path, help="page that holds the table")
    options = parser.parse_args()
    if not families():
        sys.exit(f"The templates are not at {FOLDER}.")
    known = dict(PLAYED)
    rows, failed = [], False
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(_rows, name, known.get(name, {}), options) for name in options.names or known]:
            for row, wrong in future.result():
                print(row, flush=True)
                rows.append(row)
                failed |= wrong
    if options.write:
        write_table(options.write, "episodes", HEADER, rows)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
