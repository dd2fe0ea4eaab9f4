"""Our hooks as slime's plug-in contracts (`tests/plugin_contracts` of its checkout) call them. A pytest plug-in of that
suite's own run.

The suite hands over stand-ins for slime's arguments, and samples without a task or a group. Each hook here puts in what
slime's own data source and arguments would have, and calls ours: real Ray, real episodes, an engine behind HTTP.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import transformers  # noqa: F401  # both before the suite, which puts stand-ins where they are not imported yet

from rollout_service.adapters import slime as hooks
from rollout_service.adapters.slime import service as slime_service
from rollout_service.chat.codec import ChatCodec
from rollout_service.tau2 import tasks
from tests.support import slime
from tests.support.slime_router import Router, scripted

MOCK = [tasks.references("mock")[position] for position in (0, 3)]

SUITE_CALLS = {
    "CUSTOM_GENERATE_FUNCTION": "generate",
    "ROLLOUT_FUNCTION": "generate_rollout",
    "EVAL_FUNCTION": "generate_rollout",
    "CUSTOM_REWARD_POST_PROCESS": "reward_post_process",
    "DYNAMIC_SAMPLING_FILTER": "keep_informative",
    "ROLLOUT_ALL_SAMPLES_PROCESS": "report",
}
os.environ.update({f"SLIME_CONTRACT_{hook}_PATH": f"{__name__}.{name}" for hook, name in SUITE_CALLS.items()})

_called: set[str] = set()
_args = Namespace()


@pytest.fixture(scope="session", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the hooks play on; and all of them were called."""
    ray.init("local", num_cpus=4, namespace="rollout_service", include_dashboard=False, log_to_driver=False)
    with Router(scripted(ChatCodec.load(), MOCK)) as router:
        prompts = slime.write_prompts(tmp_path_factory.mktemp("slime") / "prompts.jsonl", MOCK[:1])
        settings = {"service.name": "plugin-contracts", "service.actors": 1, "tasks.domain": "mock"}
        evaluated = [slime.dataset("mock", prompts)]
        vars(_args).update(vars(slime.make_args(router.url, rollout_service_set=settings, eval_datasets=evaluated)))
        yield
        slime_service.close()
    ray.shutdown()
    assert _called == set(SUITE_CALLS.values()), "the suite left out a hook"


def _with_task(sample: Any, group_index: int) -> Any:
    """As slime's data source reads it from what `prepare_data` wrote."""
    sample.metadata = dict(slime.make_sample(task=MOCK[group_index % len(MOCK)]).metadata)
    sample.group_index = group_index
    return sample


# The hooks, with the parameters that the suite asks for ---------------------------------------------------------------


async def generate(args: Any, sample: Any, sampling_params: dict[str, Any], evaluation: bool = False) -> Any:
    _called.add("generate")
    return await hooks.generate(_args, _with_task(sample, 0), sampling_params, evaluation)


def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> Any:
    _called.add("generate_rollout")

    class WithTasks:
        def get_samples(self, n: int) -> list[list[Any]]:
            groups = data_source.get_samples(n)
            return [[_with_task(sample, number) for sample in group] for number, group in enumerate(groups)]

    return hooks.generate_rollout(_args, rollout_id, WithTasks(), evaluation)


def reward_post_process(args: Any, samples: list[Any]) -> Any:
    _called.add("reward_post_process")
    for sample in samples:
        sample.group_index = 0
    return hooks.reward_post_process(_args, samples)


def keep_informative(args: Any, samples: list[Any], **kwargs: Any) -> Any:
    _called.add("keep_informative")
    return hooks.keep_informative(args, samples, **kwargs)


def report(args: Any, all_groups: list[Any], data_source: Any) -> None:
    _called.add("report")
    hooks.report(args, all_groups, data_source)
    args.processed_group_count = len(all_groups)  # by which the suite knows that the hook ran
