"""Every token of updates in place has the version that sampled it: a real SGLang engine with overlapped batches."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.engines.pending_tokens import count_in_pauses, reason_against_freezing
from tests.benchmarks.trainer import make_models
from tests.support import sglang
from tests.support.reference import Reference
from tests.support.workers import program

TOLERANCE = 1e-4
"""Of log-probs against Hugging Face's, both float32."""

PLAY = """
import asyncio, json, sys
import numpy as np
from deploy.engines.sglang import SglangEngine
from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import TurnInfo
from rollout_service.policy.weights import Checkpoint
from rollout_service.task_ref import TaskRef

async def play(models, arguments):
    engine = await asyncio.to_thread(
        SglangEngine, PolicyConfig(engine="sglang", model=models[0], engine_arguments=arguments)
    )
    version = 0

    async def load():
        nonlocal version
        version += 1
        staged = await engine.stage(Checkpoint(models[version % len(models)]))
        if version % 5:
            await engine.freeze()
        await engine.load(staged, version, keep_cache=True)
        if version % 5 != 4:  # every fifth one comes in the pause of the one before
            await engine.thaw()

    generator = np.random.default_rng(0)
    turns = []
    for number in range(24):
        if number == 12:
            for _ in range(9):
                await load()
            engine.interrupt()  # in a pause
        prompt = generator.integers(10, 4000, 20 + 8 * number, dtype=np.int32)
        sampling = Sampling(max_new_tokens=40 + 5 * number, ignore_eos=True)
        turn = asyncio.create_task(engine.generate(prompt, sampling, TurnInfo(TaskRef("mock", "base", "one", 0))))
        turns.append((prompt, turn))
        if number >= 12:
            await load()
    while not all(turn.done() for _, turn in turns) or version % 5 == 4:
        await load()
    told = [
        {
            "prompt": prompt.tolist(),
            "token_ids": turn.result().token_ids.tolist(),
            "logprobs": turn.result().logprobs.tolist(),
            "weight_versions": turn.result().weight_versions.tolist(),
        }
        for prompt, turn in turns
    ]
    print(json.dumps({"turns": told, "recomputed": engine.occupancy().cache.recomputed_tokens}), flush=True)
    engine.close()

if __name__ == "__main__":
    asyncio.run(play(*json.loads(sys.argv[1])))
"""


@pytest.mark.sglang
@sglang.needed
@pytest.mark.timeout(300)
def test_tokens_of_turns_that_go_on_over_updates_have_the_log_probs_of_the_versions_that_they_name(forks, tmp_path):
    models = make_models(tmp_path, {})
    arguments = sglang.ENGINE_ARGUMENTS | {"chunked_prefill_size": 64}
    # As if memory was short, some turns are moved out of it every few steps, and lose their pending tokens.
    moving = {"SGLANG_TEST_RETRACT": "true", "SGLANG_TEST_RETRACT_INTERVAL": "3"}
    done = program.run_code(forks, PLAY, [models, arguments], tmp_path, **moving)
    assert done.stdout, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["recomputed"] > 0, "no turn was moved out of memory"
    references = [Reference(model) for model in models]
    several = 0
    for turn in found["turns"]:
        ids, versions = turn["prompt"] + turn["token_ids"], np.array(turn["weight_versions"], dtype=int)
        several += len(set(turn["weight_versions"])) > 1
        expected = np.stack([reference.logprobs(ids)[len(turn["prompt"]) :] for reference in references])
        own = expected[versions % len(models), np.arange(len(versions))]
        np.testing.assert_allclose(turn["logprobs"], own, rtol=0, atol=TOLERANCE)
    assert several > 12


class Scheduler:
    """Has what is used of SGLang's."""

    def pause_generation(self, request: Any) -> None: ...
    def process_batch_result(self, batch: Any, result: Any) -> None: ...
    def event_loop_overlap(self) -> None:
        self.result_queue = []


class Renamed:
    """A scheduler of another release."""

    def pause_generation(self, request: Any) -> None: ...
    def process_batch_result(self, batch: Any, result: Any) -> None: ...
    def event_loop_overlap(self) -> None:
        self.results = []


@pytest.mark.parametrize(
    ("scheduler", "arguments", "reason"),
    [
        (Scheduler, {}, None),
        (Renamed, {}, "this release of SGLang"),
        (Scheduler, {"pp_size": 2}, "pp_size 2"),
        (Scheduler, {"enable_pdmux": True}, "enable_pdmux"),
        (Scheduler, {"disaggregation_mode": "decode"}, "disaggregation_mode decode"),
    ],
)
def test_an_engine_whose_pending_tokens_cannot_be_counted_is_never_frozen(scheduler, arguments, reason):
    known = {"pp_size": 1, "enable_pdmux": False, "disaggregation_mode": "null"}
    found = reason_against_freezing(scheduler, SimpleNamespace(**known | arguments))
    assert found is None if reason is None else reason in found


def test_a_scheduler_of_another_release_is_left_as_it_is():
    before = Renamed.pause_generation
    count_in_pauses(Renamed)
    assert Renamed.pause_generation is before
