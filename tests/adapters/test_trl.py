"""GRPOTrainer trains on the service's episodes: a real trainer, a real service, a model small enough for a CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.trl import prompts, rollout_func, tau2_reward
from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from rollout_service.config import RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, TaskError
from rollout_service.export.exporting import export
from rollout_service.record import storage
from rollout_service.record.trajectory import Outcome, Provenance, TaskRef, Trajectory
from rollout_service.record.turn_facts import TurnFacts
from tests.support import episodes, tiny_model
from tests.support.services import start
from tests.support.trajectories import make_segment, make_trajectory

IDS = ["create_task_1", "update_task_1", "impossible_task_1"]
STEPS = 3
PER_TASK = 2

pytestmark = [pytest.mark.trl, pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_model.make(tmp_path_factory.mktemp("model")))


class Recorded:
    """A rollout function that keeps what it gave, and the trainer's own log-probs of it at that moment."""

    def __init__(self, inner: Callable[[list[Any], Any], dict[str, list[Any]]]) -> None:
        self._inner = inner
        self.calls: list[tuple[list[Any], dict[str, list[Any]]]] = []
        self.errors: list[float] = []
        self.weights: list[torch.Tensor] = []

    def __call__(self, asked: list[Any], trainer: Any) -> dict[str, list[Any]]:
        given = self._inner(asked, trainer)
        self.calls.append((asked, given))
        self.weights.append(trainer.model.model.layers[0].mlp.up_proj.weight.detach().clone())
        self.errors.append(max(self._error(trainer.model, given, row) for row in range(len(asked))))
        return given

    @staticmethod
    def _error(model: Any, given: dict[str, list[Any]], row: int) -> float:
        ids = torch.tensor([given["prompt_ids"][row] + given["completion_ids"][row]])
        start = len(given["prompt_ids"][row])
        with torch.no_grad():
            table = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        own = table.gather(-1, ids[0, start:, None])[:, 0].numpy()
        mask = np.array(given["env_mask"][row]) == 1
        assert mask.any()
        return float(np.abs(own - np.array(given["logprobs"][row]))[mask].max())


def lowness(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """What two completions of a random model hardly share, where it earns nothing from τ²."""
    return [-float(np.mean(ids)) for ids in completion_ids]


def grpo(model: str, output: Any, rewards: list[Any], rollouts: Any, tasks: list[str]) -> Any:
    """A GRPOTrainer for `STEPS` steps, each over all tasks."""
    import datasets  # these two cost seconds
    import trl

    return trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
        reward_funcs=rewards,
        rollout_func=rollouts,
        train_dataset=datasets.Dataset.from_list(prompts("mock", "base", tasks)),
        args=trl.GRPOConfig(
            output_dir=str(output),
            max_steps=STEPS,
            num_generations=PER_TASK,
            per_device_train_batch_size=len(tasks) * PER_TASK,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
    )


@pytest.fixture(scope="module")
def trained(cluster, model, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A finished training of a few steps: trainer, rollouts, and the service, which still runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with start(
        "trl",
        policy__engine="transformers",
        policy__model=model,
        policy__sampling={"max_new_tokens": 12},
        limits__max_turns=2,
    ) as client:
        rollouts = Recorded(rollout_func(client))
        trainer = grpo(model, tmp_path_factory.mktemp("out"), [tau2_reward, lowness], rollouts, IDS)
        trainer.train()
        yield SimpleNamespace(trainer=trainer, rollouts=rollouts, client=client)
    torch.set_num_threads(before)


def test_the_trainer_takes_its_steps_and_each_changes_the_weights(trained) -> None:
    assert trained.trainer.state.global_step == STEPS
    assert len(trained.rollouts.calls) == STEPS
    assert all(not torch.equal(a, b) for a, b in pairwise(trained.rollouts.weights))
    assert all("rewards/tau2_reward/mean" in entry for entry in trained.trainer.state.log_history[:STEPS])


def test_logprobs_of_the_service_are_the_trainers_own_at_every_step(trained) -> None:
    assert len(trained.rollouts.errors) == STEPS
    assert max(trained.rollouts.errors) < 1e-3


def test_every_step_is_sampled_by_a_weight_version_of_its_own(trained) -> None:
    assert trained.client.weight_version() == STEPS


def test_each_prompt_gets_its_own_tasks_episodes_in_the_trainers_order(trained) -> None:
    for asked, given in trained.rollouts.calls:
        assert sorted(asked) == sorted(f"mock/base/{task_id}" for task_id in IDS for _ in range(PER_TASK))
        assert {len(column) for column in given.values()} == {len(asked)}
        assert len(set(given["trajectory_id"])) == len(asked)
        openings: dict[str, set[tuple[int, ...]]] = {}
        for prompt, ids in zip(asked, given["prompt_ids"], strict=True):
            openings.setdefault(prompt, set()).add(tuple(ids))
        assert all(len(ids) == 1 for ids in openings.values())
        for row in range(len(asked)):
            assert len({len(given[name][row]) for name in ("completion_ids", "logprobs", "env_mask")}) == 1


def test_the_rewards_that_trl_logs_are_the_evaluators(trained) -> None:
    for (_, given), entry in zip(trained.rollouts.calls, trained.trainer.state.log_history, strict=False):
        assert entry["rewards/tau2_reward/mean"] == pytest.approx(np.mean(given["rollout_reward"]))


# Without a service ---------------------------------------------------------------------------------------------------


class Stream:
    """Gives groups, but for those with too few rewards, as a stream does that was asked for with a `min_group_size`."""

    withheld: Callable[[list[Trajectory], str], None]

    def __init__(self, groups: list[list[Trajectory]], fewest: int) -> None:
        self._groups = groups
        self._fewest = fewest

    def __iter__(self) -> Iterator[list[Trajectory]]:
        for group in self._groups:
            if sum(trajectory.is_scored for trajectory in group) < self._fewest:
                self.withheld(group, "too few")
            else:
                yield group

    def close(self) -> None: ...


class Client:
    """Answers each request with groups of trajectories that `made` gives for (task id, sample)."""

    def __init__(self, made: Callable[[str, int], Trajectory], **policy: Any) -> None:
        self._made = made
        self.fewest = 0
        """Fewest scored trajectories of a group that is data."""
        given = {"engine": "sglang", "sampling": Sampling(), "template_arguments": {}}
        self.config = SimpleNamespace(policy=SimpleNamespace(**given | policy))
        self.asked: list[dict[str, Any]] = []
        self.updates: list[dict[str, Any]] = []
        self.groups: list[Any] = []

    def stream(self, *, group_size: int, ids: list[str], **selection: Any) -> Any:
        self.asked.append({"group_size": group_size, "ids": ids, **selection})

        # In order of completion, not of the request.
        groups = [[self._made(task_id, sample) for sample in range(group_size)] for task_id in reversed(ids)]
        return Stream(groups, self.fewest)

    def update_weights(self, tensors: dict[str, Any], group: Any = None) -> None:
        self.updates.append(dict(tensors))
        self.groups.append(group)

    def weight_version(self) -> int:
        return len(self.updates)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)


@pytest.fixture
def trainer(tokenizer) -> SimpleNamespace:
    """What the rollout function asks of a trainer."""
    return SimpleNamespace(
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        processing_class=tokenizer,
        model=torch.nn.Linear(2, 1),
        state=SimpleNamespace(global_step=0),
        accelerator=SimpleNamespace(
            is_main_process=True,
            process_index=0,
            num_processes=1,
            unwrap_model=lambda model: model,
            wait_for_everyone=lambda: None,
        ),
    )


@pytest.fixture
def made(embedded) -> Callable[..., Callable[[str, int], Trajectory]]:
    """Makes trajectories with the trainer's tokenizer."""

    def maker(**fields: Any) -> Callable[[str, int], Trajectory]:
        def make(task_id: str, sample: int) -> Trajectory:
            defaults: dict[str, Any] = {
                "trajectory_id": f"{task_id}-{sample}",
                "group_id": task_id,
                "sample_index": sample,
                "task": TaskRef("mock", "base", task_id, 0),
                "provenance": Provenance(tokenizer_fingerprint=embedded.tokenizer_fingerprint),
            }
            return make_trajectory(**defaults | fields)

        return make

    return maker


def test_reward_functions_get_what_each_turn_did_and_tau2_reward_leaves_it_alone(trainer, made) -> None:
    segment = make_segment()
    segment.turns[0].facts = TurnFacts(1, 0, True, [0], [])
    given = rollout_func(Client(made(segments=[segment], reward=0.5)))(["mock/base/a"], trainer)
    [[first, second]] = given["turn_facts"]
    assert given["completion_ids"][0][first["start"] : first["end"]] == segment.token_ids[3:7].tolist()
    assert (first["wrote"], first["gold_actions"], second["wrote"]) == (1, 1, None)
    assert tau2_reward([None], **{name: column for name, column in given.items() if name != "prompt_ids"}) == [0.5]


def test_a_task_that_is_asked_for_more_often_gets_a_larger_group_and_no_episode_twice(trainer, made) -> None:
    client = Client(made())
    asked = ["mock/base/a", "mock/base/b", "mock/base/a", "mock/base/c", "mock/base/a", "mock/base/b"]
    given = rollout_func(client)(asked, trainer)
    assert given["trajectory_id"] == ["a-0", "b-0", "a-1", "c-0", "a-2", "b-1"]
    requests = [(request["group_size"], request["ids"]) for request in client.asked]
    assert requests == [(3, ["a"]), (2, ["b"]), (1, ["c"])]


def test_prompt_and_completion_are_the_segment_and_the_mask_is_its_loss_mask(trainer, made) -> None:
    segment = make_segment()
    given = rollout_func(Client(made(segments=[segment], reward=0.5)))(["mock/base/a"], trainer)
    assert given["prompt_ids"][0] + given["completion_ids"][0] == segment.token_ids.tolist()
    assert len(given["prompt_ids"][0]) == segment.prompt_length
    assert given["env_mask"][0] == segment.loss_mask[segment.prompt_length :].tolist()
    assert given["logprobs"][0] == segment.logprobs[segment.prompt_length :].tolist()
    assert given["rollout_reward"] == [0.5]


def test_weights_go_to_the_service_once_after_each_step_and_before_the_first_episode(trainer, made) -> None:
    client = Client(made())
    rollouts = rollout_func(client)
    for step in (0, 0, 1, 4, 4):
        trainer.state.global_step = step
        rollouts(["mock/base/a"], trainer)
    assert len(client.updates) == 3
    assert set(client.updates[0]) == {"weight", "bias"}


class Second:
    """The accelerator of the second of two processes, that meets the first at each barrier."""

    is_main_process, process_index, num_processes = False, 1, 2

    def __init__(self, *first: Callable[[], None]) -> None:
        self._first = iter(first)

    def unwrap_model(self, model: Any) -> Any:
        return model

    def wait_for_everyone(self) -> None:
        next(self._first)()


def test_of_several_processes_only_the_first_gives_the_weights_to_the_service_of_all(trainer, made) -> None:
    client = Client(made())
    trainer.accelerator = Second(lambda: None, lambda: client.update_weights({"weight": "of the first"}))
    rollout_func(client)(["mock/base/a"], trainer)
    assert client.updates == [{"weight": "of the first"}]
    assert len(client.asked) == 1


def test_a_process_with_a_service_of_its_own_is_refused_as_the_weights_would_never_reach_it(trainer, made) -> None:
    first, own = Client(made()), Client(made())
    trainer.accelerator = Second(lambda: None, lambda: first.update_weights({"weight": "of the first"}))
    with pytest.raises(
        ConfigError, match=r'process 1 of 2 still sees weight version 0.*every rank RolloutClient\("auto"\)'
    ):
        rollout_func(own)(["mock/base/a"], trainer)
    assert own.asked == []


def test_the_callers_own_tensors_are_sent_where_he_gives_them(trainer, made) -> None:
    client = Client(made())
    rollout_func(client, weights=lambda model: {"merged": model.weight})(["mock/base/a"], trainer)
    assert set(client.updates[0]) == {"merged"}


def test_the_weights_go_through_the_callers_process_group_where_he_gives_one(trainer, made) -> None:
    client, group = Client(made()), object()
    rollout_func(client, group=group)(["mock/base/a"], trainer)
    assert client.groups == [group]


@pytest.mark.parametrize(("ends", "steps_taken"), [(math.inf, 2), (0.0, 1)])
def test_the_example_makes_a_step_of_each_batch_while_there_is_time_and_its_last_weights_are_in_the_service(
    model, tokenizer, made, tmp_path, ends, steps_taken
) -> None:
    from deploy.examples import grpo_trl  # imports TRL

    def played(task_id: str, sample: int) -> Trajectory:
        segment = make_segment(seed=sample)
        small = dataclasses.replace(segment, token_ids=segment.token_ids % 4096)  # the model has so many rows
        task = TaskRef("airline", "train", task_id, 0)
        return made(task=task, segments=[small], reward=float(sample))(task_id, sample)

    client, group, steps = Client(played), object(), []
    client.config = RolloutConfig.load(overrides={"policy": {"engine": "transformers", "model": model}})
    pretrained = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in pretrained.state_dict().items()}
    args = grpo_trl.settings(tmp_path, "cpu", 2, 2, 2, 8, temperature=1.0, top_p=1.0, learning_rate=1e-3)
    grpo_trl.improve(pretrained, tokenizer, args, client, "airline", group, steps.append, ends)

    assert [(step["version"], step["reward"]) for step in steps] == [(1, 0.5), (2, 0.5)][:steps_taken]
    assert all({"loss", "grad_norm", "entropy", "learning_rate"} <= step.keys() for step in steps)
    assert client.groups == [group] * (steps_taken + 1)
    assert any(not torch.equal(weight, before[name]) for name, weight in client.updates[-1].items())
    assert [*tmp_path.iterdir()] == [], "nothing is written"


def test_the_example_takes_as_many_episodes_at_a_time_as_divide_a_step(tmp_path) -> None:
    from deploy.examples import grpo_trl  # imports TRL

    taken = [grpo_trl.settings(tmp_path, "cpu", 2, 3, 2, rows) for rows in (1, 4, 5, 8)]
    assert [args.per_device_train_batch_size for args in taken] == [1, 3, 3, 6]
    assert {args.per_device_train_batch_size * args.gradient_accumulation_steps for args in taken} == {6}


def test_an_episode_without_a_reward_is_refused_or_teaches_nothing(trainer, made, tokenizer) -> None:
    cut = Client(made(reward=None, outcome=Outcome.TRUNCATED, termination_reason="wall_time"))
    with pytest.raises(TrainingDataError, match=r"reward is None.*'wall_time'"):
        rollout_func(cut)(["mock/base/a"], trainer)
    given = rollout_func(cut, unscored="mask")(["mock/base/a"], trainer)
    assert not any(given["env_mask"][0])
    lost = Client(made(reward=None, segments=[], outcome=Outcome.ABORTED, provenance=Provenance()))
    given = rollout_func(lost, unscored="mask")(["mock/base/a"], trainer)
    assert (given["completion_ids"], given["env_mask"]) == ([[tokenizer.eos_token_id]], [[0]])
    assert tau2_reward(given["completion_ids"], rollout_reward=given["rollout_reward"]) == [None]


@pytest.mark.parametrize("reward", [None, 0.0], ids=["new", "of an older version's file"])
def test_an_episode_in_which_the_policy_never_spoke_is_refused_or_has_neither_reward_nor_tokens(
    trainer, made, reward
) -> None:
    client = Client(made(reward=reward, segments=[], outcome=Outcome.TRUNCATED, termination_reason="context_length"))
    with pytest.raises(TrainingDataError, match=rf"reward is {reward}.*'context_length'"):
        rollout_func(client)(["mock/base/a"], trainer)
    given = rollout_func(client, unscored="mask")(["mock/base/a"], trainer)
    assert (given["rollout_reward"], given["env_mask"]) == ([None], [[0]])
    assert {len(given[name][0]) for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask")} == {1}


def test_of_a_group_that_is_no_data_nothing_is_trained_on(trainer, made) -> None:
    client = Client(lambda task_id, sample: made(reward=None if sample else 1.0)(task_id, sample))
    client.fewest = 2
    asked = ["mock/base/a", "mock/base/a"]
    with pytest.raises(TrainingDataError, match="reward is None"):
        rollout_func(client)(asked, trainer)
    given = rollout_func(client, unscored="mask")(asked, trainer)
    assert given["rollout_reward"] == [None, None]
    assert not any(bit for mask in given["env_mask"] for bit in mask)


def test_trl_trains_on_what_is_left_where_some_or_all_of_a_group_have_no_reward(
    model, made, tokenizer, tmp_path
) -> None:
    segment = make_segment()
    segment.token_ids %= len(tokenizer)
    scored, unscored = (made(reward=reward, segments=[segment]) for reward in (1.0, None))
    lost = made(reward=None, segments=[], outcome=Outcome.ABORTED, provenance=Provenance())

    def make(task_id: str, sample: int) -> Trajectory:
        if task_id == "create_task_1":
            return lost(task_id, sample)
        if task_id == "update_task_1":
            return (scored, unscored)[sample](task_id, sample)
        return made(reward=float(sample), segments=[segment])(task_id, sample)

    trainer = grpo(model, tmp_path, [tau2_reward], rollout_func(Client(make), unscored="mask"), IDS)
    trainer.train()
    logged = trainer.state.log_history[:STEPS]
    assert [entry["rewards/tau2_reward/mean"] for entry in logged] == [pytest.approx(2 / 3)] * STEPS
    assert all(np.isfinite(entry["loss"]) and 0 < entry["grad_norm"] < np.inf for entry in logged)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"provenance": Provenance(tokenizer_fingerprint="other")}, r"tokenizer_fingerprint is 'other'"),
        ({"segments": [make_segment(), make_segment()]}, r"2 segments.*policy.history: append"),
        ({"sample_index": 1}, r"Group 'a' is not whole: sample_index has \[1\]"),
        ({"task": TaskRef("mock", "base", "b", 1)}, r"The group of 'mock/base/a' never came"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(trainer, made, fields, problem) -> None:
    with pytest.raises(TrainingDataError, match=problem):
        rollout_func(Client(made(**fields)))(["mock/base/a"], trainer)


def test_an_id_is_refused_for_which_the_trained_model_has_no_row_also_where_the_model_sees(trainer, made) -> None:
    segment = make_segment()
    highest = int(segment.token_ids.max())
    provenance = made()("a", 0).provenance
    provenance.tokenizer_size = highest  # the highest id is one of the model's padding rows
    rollouts = rollout_func(Client(made(segments=[segment], provenance=provenance)))
    for rows in (highest, highest + 1):
        text = {"model_type": "llama", "vocab_size": rows}
        trainer.model.config = transformers.LlavaConfig(text_config=text)
        with contextlib.nullcontext() if rows > highest else pytest.raises(TrainingDataError, match=f"are {rows} ids"):
            rollouts(["mock/base/a"], trainer)


def test_missing_logprobs_are_refused(trainer, made) -> None:
    segment = make_segment()
    segment.logprobs[segment.loss_mask == 1] = np.nan
    with pytest.raises(TrainingDataError, match=r"segments\[0\].logprobs has no finite value for 8 of 8"):
        rollout_func(Client(made(segments=[segment])))(["mock/base/a"], trainer)


def test_settings_that_would_make_the_logprobs_anothers_are_refused_before_any_work(trainer, made) -> None:
    for policy, problem in (
        ({"engine": "scripted"}, "policy.engine is 'scripted'"),
        ({"sampling": Sampling(temperature=0.7)}, r"temperature is 0.7, but the trainer's is 1.0"),
        ({"sampling": Sampling(top_p=0.9)}, r"policy.sampling.top_p is 0.9: .* a part of the distribution"),
        ({"sampling": Sampling(top_k=20)}, r"policy.sampling.top_k is 20: .* a part of the distribution"),
    ):
        client = Client(made(), **policy)
        with pytest.raises((ConfigError, TrainingDataError), match=problem):
            rollout_func(client)(["mock/base/a"], trainer)
        assert client.asked == client.updates == []


@pytest.mark.parametrize(("name", "value", "ours"), [("top_p", 0.9, "1.0"), ("top_k", 20, "-1")])
def test_a_trainer_that_wants_other_sampling_than_the_service_s_is_refused(trainer, made, name, value, ours) -> None:
    setattr(trainer, name, value)
    with pytest.raises(ConfigError, match=rf"policy.sampling.{name} is {ours}, but the trainer's is {value}"):
        rollout_func(Client(made()))(["mock/base/a"], trainer)


def test_a_trainer_with_other_arguments_of_the_template_is_refused(trainer, made) -> None:
    trainer.chat_template_kwargs = {"enable_thinking": False}
    with pytest.raises(ConfigError, match=r"chat_template_kwargs=\.\.\.\) is \{'enable_thinking': False\}"):
        rollout_func(Client(made()))(["mock/base/a"], trainer)


@pytest.mark.parametrize("prompt", ["Say hello.", [{"role": "user", "content": "hi"}], "mock/base"])
def test_a_prompt_that_names_no_task_is_refused(trainer, made, prompt) -> None:
    with pytest.raises(TrainingDataError, match=r"names no task.*prompts\(domain, split\)"):
        rollout_func(Client(made()))([prompt], trainer)


def test_prompts_name_the_tasks_of_a_split() -> None:
    assert prompts("mock", "base", ["update_task_1"]) == [{"prompt": "mock/base/update_task_1"}]
    assert len(prompts("retail", "train")) == 74
    with pytest.raises(TaskError, match="no task 'nothing'"):
        prompts("mock", "base", ["nothing"])


def test_prompts_leave_out_what_the_service_leaves_out() -> None:
    config = RolloutConfig(tasks={"domain": "airline", "exclude": ["0", "2"]})
    rows = prompts("airline", "base", config=config)
    assert [row["prompt"] for row in rows[:2]] == ["airline/base/1", "airline/base/3"]
    with pytest.raises(TaskError, match=r"airline/base/2 is left out: tasks.exclude names it"):
        prompts("airline", "base", ["1", "2"], config)


def test_the_reward_function_without_the_rollout_function_is_refused() -> None:
    with pytest.raises(TrainingDataError, match=r"2 completions were not made by the service.*rollout_func"):
        tau2_reward(["a", "b"], prompts=["p", "p"])


def test_the_supervised_trainer_takes_exported_rows_as_they_are(model, tmp_path):
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    played = episodes.run("mock")
    storage.write(tmp_path / "mock.jsonl", [played])
    path = export(tmp_path / "mock.jsonl", "sft", tmp_path / "rows.jsonl").output
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    config = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=None)
    trainer = SFTTrainer(model, args=config, train_dataset=rows)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    [segment] = played.segments
    sampled = segment.loss_mask == 1
    labels = batch["labels"][0].numpy()
    assert batch["input_ids"][0].tolist() == segment.token_ids.tolist()
    assert np.array_equal(labels != -100, sampled)
    assert np.array_equal(labels[sampled], segment.token_ids[sampled])
