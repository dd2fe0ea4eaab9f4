"""The examples that learn, in a short version: too few steps to see the reward rise, enough to see the whole loop."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer

from deploy.examples import learn, retail
from deploy.examples.grpo import Trainer
from rollout_service import RolloutClient

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def threads():
    """The example sets how many torch has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_imitation_then_grpo_with_each_step_s_weights_in_the_service(cluster, threads, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(learn, "EVALUATION_EPISODES", 8)
    learn.learn(tmp_path, steps=4, groups=3, group_size=8, epochs=8, seed=5, hidden=64, layers=1)
    said = capsys.readouterr().out
    losses = [float(text) for text in re.findall(r"imitation \d+, loss (\S+)", said)]
    assert len(losses) == 8
    assert losses[-1] < losses[0] / 5, "it learns from the trajectories' own masks"
    assert "reward before" in said, "the table"

    result = json.loads((tmp_path / "seed-5.json").read_text())
    assert [step["version"] for step in result["steps"]] == [0, 1, 2, 3]
    assert max(step["staleness"] for step in result["steps"]) <= 1
    assert any(step["loss"] != 0 for step in result["steps"]), (
        "no group had different rewards: nothing was learned from"
    )
    compared = [result["before"], *result["steps"], result["after"]]
    errors = [line["logprob_error"] for line in compared if line["logprob_error"] is not None]
    assert len(errors) >= 3
    assert max(errors) < 1e-3, "the service samples with the weights that its version names"
    assert all(0.0 <= line["reward"] <= 1.0 for line in compared)


@pytest.fixture(scope="module")
def services(cluster) -> Iterator[dict[str, RolloutClient]]:
    """The services of `retail` by their engines, with a few turns for an episode. The trainings here share them."""
    started: dict[str, RolloutClient] = {}
    start = retail.start
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def shared(*args: Any, engine: str, **policy: Any) -> contextlib.nullcontext[RolloutClient]:
            if engine not in started:
                started[engine] = stack.enter_context(start(*args, engine=engine, **policy))
            return contextlib.nullcontext(started[engine])

        patch.setattr(retail, "MAX_TURNS", 2)
        patch.setattr(retail, "start", shared)
        yield started


def taught(folder: Path, trainer: str) -> dict[str, Any]:
    """The results of a pretrained model's lessons in miniature: a random model stands for the pretrained one."""
    model = learn.random_model(32, 1, folder / "model")
    model.save_pretrained(folder / "model")
    few = {"demonstrations": 1, "epochs": 1, "steps": 2, "groups": 1, "group_size": 2, "trials": 1, "tasks": 1}
    engine = {"engine": "transformers", "engine_arguments": '{"device": "cpu"}', "device": "cpu", "transfer": "gloo"}
    more = {"trainer": trainer, "seed": 3, "rows": 2, "context": 8192, "slots": 4}
    retail.learn(folder, str(folder / "model"), "airline", **few, **engine, **more)
    return json.loads((folder / "airline-3.json").read_text())


def check_lessons(result: dict[str, Any], client: RolloutClient) -> None:
    """Three evaluations, and two steps of which each gave the service its weights."""
    assert [*result["evaluations"]] == ["before", "imitation", "grpo"]
    assert {found["tasks"] for found in result["evaluations"].values()} == {1}
    last = client.weight_version()
    assert [step["version"] for step in result["steps"]] == [last - 2, last - 1]


def test_a_pretrained_model_imitates_then_improves_and_plays_the_test_split_before_between_and_after(
    services, threads, tmp_path, capsys
):
    result = taught(tmp_path, "plain")
    assert "demonstrations 30, solved" in capsys.readouterr().out
    check_lessons(result, services["transformers"])
    errors = [step["logprob_error"] for step in result["steps"] if step["logprob_error"] is not None]
    assert errors
    assert max(errors) < 1e-3, "the service samples with the weights that came through the group, YaRN included"


@pytest.mark.trl
@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_trl_s_own_trainer_improves_it_too_and_leaves_its_last_weights_in_the_service(services, threads, tmp_path):
    result = taught(tmp_path, "trl")
    client = services["transformers"]
    check_lessons(result, client)
    assert all({"reward", "loss", "grad_norm", "entropy", "seconds"} <= step.keys() for step in result["steps"])
    trained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model-airline-3", dtype=torch.float32)
    played = client.collect(1, progress=False)
    error = Trainer(trained, "cpu", retail.RATES).logprob_error(played, client.weight_version())
    assert error is not None
    assert error < 1e-3


@pytest.mark.trl
def test_rows_that_do_not_divide_a_step_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(typer.BadParameter, match=r"--rows is 3\. Choose a divisor of 4"):
        retail.learn(tmp_path, "no-model", trainer="trl", groups=2, group_size=2, rows=3)
