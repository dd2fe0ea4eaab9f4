"""Our hooks inside slime's own code: its rollout loop, its checks, its conversion to training data.

Runs where `SLIME_PATH` names a checkout of slime that is on the Python path, see `make slime-contract`. slime's engines
and trackers (sglang, wandb) are not needed for it: stand-ins take their place where they are not installed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from rollout_service.adapters.slime import reward_post_process
from rollout_service.adapters.slime.samples import METADATA, filled, flat, is_scored
from rollout_service.tau2 import gold, tasks
from tests.support import slime
from tests.support.slime_router import Router, routing

pytestmark = pytest.mark.skipif("SLIME_PATH" not in os.environ, reason="needs SLIME_PATH, a checkout of slime")

GOLDEN = sorted((Path(__file__).parent / "golden").glob("slime_*.json"))
MOCK = [tasks.references("mock")[position] for position in (0, 3, 8)]
HOOKS = "rollout_service.adapters.slime"


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what is not installed."""

    def __init__(self, *names: str) -> None:
        self._names = [name for name in names if importlib.util.find_spec(name) is None]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self._names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        pass


@pytest.fixture(scope="module")
def router(cluster, embedded) -> Iterator[Router]:
    with routing(embedded, MOCK) as server:
        yield server


@pytest.fixture(scope="module")
def convert() -> Any:
    """slime's conversion of samples to training data, as its rollout manager does it."""
    stand_ins = StandIns("sglang", "sglang_router", "wandb")
    sys.meta_path.append(stand_ins)
    try:
        manager = importlib.import_module("slime.ray.rollout").RolloutManager.__ray_metadata__.modified_class
    finally:
        sys.meta_path.remove(stand_ins)

    def convert_samples(args: Namespace, samples: list[Any]) -> dict[str, Any]:
        bare = object.__new__(manager)
        bare.args = args
        bare.custom_reward_post_process_func = reward_post_process
        bare.custom_convert_samples_to_train_data_func = None
        return bare._convert_samples_to_train_data(samples)

    return convert_samples


@pytest.fixture
def args(router, tmp_path) -> Namespace:
    router.calm()
    prompts = slime.write_prompts(tmp_path / "prompts.jsonl", MOCK)
    service = {"service.name": "slime-contract", "service.actors": 1, "service.slots": 32, "tasks.domain": "mock"}
    ours = {
        "custom_generate_function_path": f"{HOOKS}.generate",
        "dynamic_sampling_filter_path": None,
        "rollout_all_samples_process_path": f"{HOOKS}.report",
        "rollout_service_set": service,
    }
    reading = {
        "prompt_data": str(prompts),
        "input_key": "prompt",
        "metadata_key": "metadata",
        "label_key": None,
        "tool_key": None,
        "multimodal_keys": None,
        "apply_chat_template": False,
        "apply_chat_template_kwargs": {},
        "rollout_max_prompt_len": None,
        "rollout_shuffle": True,
        "rollout_global_dataset": True,
        "dump_details": None,
        "buffer_filter_path": None,
    }
    running = {
        "rollout_skip_special_tokens": False,
        "rollout_sample_filter_path": None,
        "mask_offpolicy_in_partial_rollout": False,
        "sglang_server_concurrency": 64,
        "sglang_dp_size": 1,
        "rollout_num_engines": 1,
        "use_distributed_post": False,
        "eval_max_prompt_len": None,
        "eval_reward_key": None,
    }
    return slime.make_args(router.url, **ours | reading | running)


@pytest.fixture
def data_source(args) -> Any:
    from slime.rollout.data_source import RolloutDataSourceWithBuffer
    from slime.rollout.sglang_rollout import GenerateState
    from slime.utils.http_utils import init_http_client

    init_http_client(args)
    type(GenerateState).clear_instances(GenerateState)  # its semaphore belongs to the arguments
    return RolloutDataSourceWithBuffer(args)


def every_kind() -> list[list[list[Any]]]:
    """A batch with a group of two of each kind of episode, as the rollout gives it where history may be rewritten."""
    return [
        [filled(slime.make_sample(2 * number + k, number), episode) for k in range(2)]
        for number, episode in enumerate(slime.EPISODES.values())
    ]


def test_samples_are_slime_s_own():
    from slime.utils.types import Sample

    assert type(slime.make_sample()) is Sample


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_slime_reads_the_golden_dicts_and_gives_them_back(path):
    from slime.utils.types import Sample

    for row in json.loads(path.read_text()):
        sample = Sample.from_dict(row)
        assert row.items() <= sample.to_dict().items()
        sample._validate_response_metadata_lengths()


def test_slime_converts_a_batch_of_every_kind_of_episode(convert):
    from slime.observability.rollout_data_utils import (
        tensorize_rollout_data_for_training,
        validate_rollout_id_annotated,
    )

    groups = every_kind()
    validate_rollout_id_annotated(groups)
    samples = flat(groups)
    data = convert(slime.make_args(rollout_top_p=1.0), samples)
    assert data["tokens"] == [sample.tokens for sample in samples]
    assert data["rollout_ids"] == [sample.rollout_id for sample in samples]
    assert data["rollout_log_probs"] == [sample.rollout_log_probs for sample in samples]
    assert [sum(mask) for mask in data["loss_masks"]] == [0 if s.remove_sample else sum(s.loss_mask) for s in samples]
    siblings = [place for place, sample in enumerate(samples) if sample.metadata[METADATA]["segments"] == 2]
    assert [data["rollout_mask_sums"][place] for place in siblings] == [6] * 4
    assert data["truncated"] == [int(sample.status.value == "truncated") for sample in samples]
    tensorize_rollout_data_for_training(data)


def test_slime_s_debug_dump_of_our_samples_loads_as_the_same_batch(convert, tmp_path):
    """`--save-debug-rollout-data`, and `--load-debug-rollout-data` instead of a rollout."""
    from slime.observability.rollout_data_utils import load_debug_rollout_data, save_debug_rollout_data

    samples = flat(every_kind())
    template = str(tmp_path / "p_{rollout_id}.pt")
    save_debug_rollout_data(template, samples, rollout_id=3, evaluation=False)
    loaded = load_debug_rollout_data(template, rollout_id=3)
    assert [sample.to_dict() for sample in loaded] == [sample.to_dict() for sample in samples]
    assert convert(slime.make_args(), loaded) == convert(slime.make_args(), samples)


def test_slime_s_own_plugin_contracts_pass_with_our_hooks():
    paths = [".", *os.environ["PYTHONPATH"].split(os.pathsep)]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/plugin_contracts", "-p", "tests.support.slime_plugins", "-q"],
        cwd=os.environ["SLIME_PATH"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in paths)},
        capture_output=True,
        text=True,
    )
    print(ran.stdout.splitlines()[-1])
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_slime_s_own_loop_plays_a_rollout_with_our_generate(args, data_source, convert):
    from slime.rollout.sglang_rollout import generate_rollout

    output = generate_rollout(args, 0, data_source)
    assert [len(group) for group in output.samples] == [2, 2]
    samples = flat(output.samples)
    assert {sample.reward for sample in samples} == {1.0}
    data = convert(args, samples)
    assert data["rewards"] == [0.0] * 4
    assert all(len(mask) == n for mask, n in zip(data["loss_masks"], data["response_lengths"], strict=True))


def test_slime_s_loop_ends_soon_what_it_has_no_use_for(args, data_source, router, embedded):
    from slime.rollout.sglang_rollout import generate_rollout

    args.over_sampling_batch_size = 6  # each task twice; two groups of other tasks are enough
    opening = gold.opening(tasks.get(MOCK[2]))
    router.seconds = lambda prompt: 120.0 if opening in embedded.decode(prompt.tolist()) else 0.1
    began = time.monotonic()
    output = generate_rollout(args, 1, data_source)
    print(f"a rollout of 12 episodes, 4 of them wanted and 4 endless: {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 60.0
    assert all(is_scored(sample) for sample in flat(output.samples))
    assert router.settled(), "slime puts its engines to sleep now"


def test_slime_s_evaluation_plays_every_prompt(args, data_source):
    from slime.rollout.sglang_rollout import generate_rollout
    from slime.utils.eval_config import EvalDatasetConfig

    dataset = EvalDatasetConfig(
        name="mock", path=args.prompt_data, input_key="prompt", metadata_key="metadata", n_samples_per_eval_prompt=1,
        temperature=0.0, top_p=1.0, top_k=-1, max_response_len=512, apply_chat_template=False,
    )  # fmt: skip
    args.eval_datasets = [dataset]
    for rollout in (generate_rollout, importlib.import_module(HOOKS).generate_rollout):
        output = rollout(args, 0, data_source, evaluation=True)
        assert output.data["mock"]["rewards"] == [1.0] * 3
        assert output.data["mock"]["truncated"] == [False] * 3


def test_slime_s_fully_asynchronous_rollout_keeps_episodes_going_between_its_batches(args, data_source, convert):
    rollout = importlib.import_module("slime.rollout.fully_async_rollout")
    args.sglang_server_concurrency = 3  # groups at a time; a batch is of two
    try:
        batches = [rollout.generate_rollout_fully_async(args, number, data_source) for number in range(3)]
    finally:
        rollout._stop_global_worker()
    groups = [group for batch in batches for group in batch]
    assert [len(group) for group in groups] == [2] * 6
    assert len({sample.index for sample in flat(groups)}) == 12, "no sample is handed out twice"
    assert {sample.reward for sample in flat(groups)} == {1.0}
    convert(args, flat(batches[0]))


def test_slime_s_fully_asynchronous_rollout_plays_a_group_with_a_fault_again(args, data_source, router):
    rollout = importlib.import_module("slime.rollout.fully_async_rollout")
    args.sglang_server_concurrency = 1
    router.refuses = True
    refused: list[int] = []

    def mend() -> None:
        refused.append(len(router.requests))
        router.refuses = False

    mended = threading.Timer(15.0, mend)
    mended.start()
    try:
        groups = rollout.generate_rollout_fully_async(args, 0, data_source)
    finally:
        mended.cancel()
        rollout._stop_global_worker()
    assert refused[0] > 2 * 3, "more than all attempts at one group: it was played again"
    assert {sample.reward for sample in flat(groups)} == {1.0}
