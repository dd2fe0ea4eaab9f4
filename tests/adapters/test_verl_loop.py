"""verl's agent loop, in verl's own worker: τ² episodes whose turns verl's client of its servers gives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from deploy.engines.scripted import ScriptedEngine
from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.prompts import AGENT_NAME, prepare_data
from rollout_service.adapters.verl import loop as verl_loop
from rollout_service.config import Script
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, TaskError
from rollout_service.policy.base import TurnInfo
from rollout_service.record.trajectory import TaskRef
from tests.support import episodes, tiny_model, verl

pytestmark = [
    pytest.mark.verl,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:register_new_resolver"),  # hydra's own call
]

PROMPT, RESPONSE = 6000, 3000
TASK = episodes.task("mock", 0)


class Client:
    """Stands for verl's LLMServerClient, which asks servers on GPUs: answers with the gold turns of one task, as verl's
    TokenOutput, and can be interrupted, fail or leave something out."""

    def __init__(
        self, task: TaskRef = TASK, *, failures: int = 0, abort_after: int | None = None, **output: Any
    ) -> None:
        self.task = task
        self.engine = ScriptedEngine(Script(), episodes.codec())
        self.failures = failures
        self.abort_after = abort_after
        self.output = output
        self.parameters: list[dict[str, Any]] = []
        self.turns: dict[str, int] = {}
        self.aborted_trajectory: dict[str, list[int]] = {}
        self.seen: dict[str, tuple[list[int], list[int]]] = {}
        """Of each episode, the last prompt and what was sampled for it."""

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        self.parameters.append(dict(sampling_params))
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server is gone")
        tokens = self.aborted_trajectory.pop(request_id, None)
        if tokens is None:
            turn = self.turns[request_id] = self.turns.get(request_id, -1) + 1
            info = TurnInfo(self.task, turn=turn)
            asked = Sampling(max_new_tokens=sampling_params["max_tokens"])
            tokens = (await self.engine.generate(np.asarray(prompt_ids), asked, info)).token_ids.tolist()
            if self.abort_after is not None:
                tokens, self.aborted_trajectory[request_id] = tokens[: self.abort_after], tokens[self.abort_after :]
        self.seen[request_id] = prompt_ids, tokens
        stop = "aborted" if request_id in self.aborted_trajectory else "completed"
        steps = len(self.parameters)
        fields = {
            "token_ids": tokens,
            "log_probs": [-0.5] * len(tokens),
            "stop_reason": stop,
            "extra_fields": {"min_global_steps": steps, "max_global_steps": steps},
        }
        return verl.needed("verl.workers.rollout.replica").TokenOutput(**fields | self.output)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("verl"))


@pytest.fixture
def play(model, tmp_path):
    """Plays rows in verl's own AgentLoopWorker, and gives its DataProto."""

    def run(
        client: Client,
        rows: int = 2,
        row: Any = None,
        rollout: Any = None,
        meta: Any = None,
        config: str | None = None,
        connect: Any = None,
        **settings: Any,
    ) -> Any:
        agent_loop = verl.needed("verl.experimental.agent_loop.agent_loop")
        protocol = verl.needed("verl.protocol")
        file = tmp_path / "agent_loop.yaml"
        target = f"{verl_loop.__name__}.{verl_loop.Tau2AgentLoop.__qualname__}"
        chosen = {"service.slots": 2, **{name.replace("__", "."): value for name, value in settings.items()}}
        entry = {"name": "tau2", "_target_": target, "config": config, "settings": chosen}
        file.write_text(yaml.safe_dump([entry]))
        lengths = {"prompt_length": PROMPT, "response_length": RESPONSE, "calculate_log_probs": True} | (rollout or {})
        trainer = verl.configuration(
            model,
            rollout__agent__agent_loop_config_path=file,
            **{f"rollout__{name}": value for name, value in lengths.items()},
        )
        info = {"domain": TASK.domain, "split": TASK.split, "task_id": TASK.task_id, "index": TASK.index}
        fields = {"agent_name": "tau2", "raw_prompt": [], "uid": "group", "extra_info": info} | (row or {})
        columns = {name: objects([value] * rows) for name, value in fields.items()}

        async def generate() -> Any:
            worker = agent_loop.AgentLoopWorker(trainer, connect(client, trainer) if connect else client)
            return await worker.generate_sequences(protocol.DataProto(non_tensor_batch=columns, meta_info=meta or {}))

        return asyncio.run(generate())

    return run


def objects(values: list[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def segments(data: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each row, without padding: prompt, response, and its mask."""
    found = []
    for prompt, response, mask, attention in zip(
        *(data.batch[name].tolist() for name in ("prompts", "responses", "response_mask", "attention_mask")),
        strict=True,
    ):
        first, length = PROMPT - sum(attention[:PROMPT]), sum(attention[PROMPT:])
        found.append((prompt[first:], response[:length], mask[:length]))
    return found


def test_verls_worker_gets_the_tokens_that_its_servers_saw_and_sampled_with_tau2s_reward(play):
    client = Client()
    data = play(client, rows=3)
    assert len(client.seen) == 3
    expected = sorted(prompt + sampled for prompt, sampled in client.seen.values())
    rows = segments(data)
    assert sorted(prompt + response for prompt, response, _ in rows) == expected
    for row, (_, response, mask) in enumerate(rows):
        assert data.batch["rm_scores"][row].sum() == data.batch["rm_scores"][row, len(response) - 1] == 1.0
        assert 0 < sum(mask) < len(mask)
        logprobs = data.batch["rollout_log_probs"][row, : len(mask)]
        assert logprobs.tolist() == [-0.5 * sampled for sampled in mask]
    assert data.non_tensor_batch["uid"].tolist() == ["group"] * 3
    assert data.non_tensor_batch["outcome"].tolist() == ["completed"] * 3
    assert data.non_tensor_batch["__num_turns__"].min() > 3
    assert all(oldest >= 1 for oldest in data.non_tensor_batch["min_global_steps"])


def test_a_turn_that_a_weight_update_aborted_goes_on_from_its_tokens(play):
    whole, parts = Client(), Client(abort_after=3)
    undisturbed, interrupted = segments(play(whole, rows=1)), segments(play(parts, rows=1))
    assert interrupted == undisturbed
    assert len(parts.parameters) == 2 * len(whole.parameters)
    budgets = [parameters["max_tokens"] for parameters in parts.parameters[:2]]
    assert budgets[0] - budgets[1] == 3


@pytest.mark.parametrize("name", ["LLMServerClient", "FullyAsyncLLMServerClient"])
def test_verls_own_clients_reach_their_servers_for_every_turn(play, name):
    module = verl.needed("verl.workers.rollout.llm_server")

    class Connected(getattr(module, name)):
        """Has one server, in this process; the session goes along, as a real server has none."""

        def __init__(self, server: Client, trainer: Any) -> None:
            super().__init__(trainer)
            self.server = server

        async def _acquire_server(self, request_id: str, **_: Any) -> tuple[str, Any]:
            async def remote(prompt_ids: list[int], sampling_params: dict[str, Any], **others: Any) -> Any:
                assert others.pop("request_id")
                assert not any(others.values()), "only tokens are sent"
                return await self.server.generate(request_id, prompt_ids=prompt_ids, sampling_params=sampling_params)

            return "server", SimpleNamespace(generate=SimpleNamespace(remote=remote))

        def _release_server(self, *_: Any, **__: Any) -> None:
            pass

    direct, server = Client(), Client()
    assert segments(play(server, rows=1, connect=Connected)) == segments(play(direct, rows=1))
    assert len(server.parameters) == len(direct.parameters)


def test_every_turn_is_sampled_as_verl_says(play):
    client = Client()
    play(
        client,
        rows=1,
        rollout={"temperature": 0.7, "val_kwargs.temperature": 0.0, "val_kwargs.top_p": 0.9},
        policy__sampling__max_new_tokens=300,
    )
    play(client, rows=1, rollout={"val_kwargs.temperature": 0.0, "val_kwargs.top_p": 0.9}, meta={"validate": True})
    first, last = client.parameters[0], client.parameters[-1]
    assert (first["temperature"], first["top_p"], first["max_tokens"]) == (0.7, 1.0, 300)
    assert (last["temperature"], last["top_p"]) == (0.0, 0.9)
    assert first["logprobs"] is True
    assert first["stop_token_ids"] == [episodes.codec().end_of_turn_id]


def test_log_probs_are_handed_over_only_where_verl_asks_for_them(play):
    assert "rollout_log_probs" not in play(Client(), rows=1, rollout={"calculate_log_probs": False}).batch


def test_an_episode_ends_where_verls_room_for_its_response_does(play):
    data = play(Client(), rows=1, rollout={"response_length": 60})
    ((_, response, mask),) = segments(data)
    assert len(response) <= 60
    assert mask[-1] == 1, "nothing was cut: the last token is a sampled one"
    assert data.non_tensor_batch["outcome"].tolist() == ["truncated"]
    assert data.batch["rm_scores"].sum() == 0.0


def test_an_episode_that_a_fault_kept_from_its_reward_is_played_again(play):
    data = play(Client(failures=2), rows=1, service__max_attempts=3)
    assert data.batch["rm_scores"].sum() == 1.0


def test_an_episode_without_a_reward_after_all_attempts_is_an_error_that_names_the_fault(play):
    with pytest.raises(
        TrainingDataError, match=r"create_task_1 has no reward after 2 attempts; the last: policy: .*the server is gone"
    ):
        play(Client(failures=99), rows=1, service__max_attempts=2)
    with pytest.raises(TrainingDataError, match="returned no log-probs"):
        play(Client(log_probs=None), rows=1, service__max_attempts=1)


def test_an_episode_whose_fault_is_final_is_not_played_again(play):
    client = Client(token_ids=[5], log_probs=[-0.5], stop_reason="stop")
    with pytest.raises(TrainingDataError, match=r"no reward after 1 attempts.*stop token was removed"):
        play(client, rows=1, service__max_attempts=3)
    assert len(client.parameters) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"policy__response_length": RESPONSE + 1}, "policy.response_length is 3001, and verl has room for 3000"),
        ({"policy__context_length": 9000}, "policy.context_length is 9000, and verl has room for 8999"),
        ({"policy__history": "template"}, "policy.history is template"),
        (
            {"rollout": {"prompt_length": 300}},
            r"mock/base/create_task_1 has \d+ tokens, and rollout.prompt_length is 300",
        ),
        ({"rollout": {"max_model_len": 300}}, "leaves no room for a turn"),
        ({"row": {"extra_info": {"index": 3}}}, "extra_info .*names no task: it is .*index"),
        ({"row": {"extra_info": None}}, "names no task"),
        ({"limits__max_turn": 3}, "max_turn"),
    ],
)
def test_what_cannot_be_played_or_handed_over_is_refused_by_name(play, asked, message):
    with pytest.raises(ConfigError, match=message):
        play(Client(), rows=1, **asked)


def test_a_task_that_is_not_there_is_refused(play):
    info = {"domain": "mock", "split": "base", "task_id": "none", "index": 0}
    with pytest.raises(TaskError, match="none"):
        play(Client(), rows=1, row={"extra_info": info})


def test_a_key_that_the_workers_lack_is_named(play, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        play(Client(), rows=3, user__model="openai/any", user__api_key_var="NO_SUCH_KEY")


def test_a_services_file_serves_here_too_and_the_agent_loops_own_settings_go_over_it(play, tmp_path):
    file = tmp_path / "rollout.yaml"
    file.write_text("policy: {engine: sglang, model: /nowhere}\nlimits: {max_turns: 1, wall_seconds: 60}\n")
    short, whole = Client(), Client()
    assert play(short, rows=1, config=str(file)).non_tensor_batch["outcome"].tolist() == ["truncated"]
    assert len(short.parameters) == 1
    data = play(whole, rows=1, config=str(file), limits__max_turns=9)
    assert data.non_tensor_batch["outcome"].tolist() == ["completed"]


def test_a_turn_longer_than_the_settings_allow_is_cut_and_said_to_be(play):
    client = Client()
    trajectories = []

    class Player(verl_loop._Player):
        async def play(self, *asked: Any) -> Any:
            trajectories.append(await super().play(*asked))
            return trajectories[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verl_loop, "_Player", Player)
        play(client, rows=1, policy__sampling__max_new_tokens=12, limits__max_turns=3)
    reasons = {turn.finish_reason for turn in trajectories[0].segments[0].turns}
    assert "length" in reasons


def test_the_file_of_agent_loops_that_comes_with_the_package_can_be_used(model):
    (entry,) = yaml.safe_load(Path("deploy/verl/agent_loop.yaml").read_text())
    assert entry["name"] == AGENT_NAME
    assert entry["_target_"] == f"{verl_loop.__name__}.{verl_loop.Tau2AgentLoop.__qualname__}"
    actor = verl.configuration(
        model, rollout__prompt_length=PROMPT, rollout__response_length=RESPONSE
    ).actor_rollout_ref
    config = verl_loop._service_config(actor, entry["config"], entry["settings"])
    assert (config.policy.context_length, config.policy.response_length) == (PROMPT + RESPONSE - 1, RESPONSE)


def test_verls_data_set_reads_the_prompts_that_prepare_data_writes(model, tmp_path):
    dataset = verl.needed("verl.utils.dataset.rl_dataset")
    path = tmp_path / "train.parquet"
    assert prepare_data(path, ["mock", "airline"], ["base"]) == 9 + 50
    config = {**verl.configuration(model).data, "cache_dir": str(tmp_path / "cache")}
    transformers = pytest.importorskip("transformers")
    rows = dataset.RLHFDataset([str(path)], transformers.AutoTokenizer.from_pretrained(model), config)
    assert len(rows) == 59
    row = rows[10]
    assert row["agent_name"] == "tau2"
    assert verl_loop._task(row) == episodes.task("airline", 1)
    assert row["index"] == 1
