"""The examples that learn, in a short version: too few steps to see the reward rise, enough to see the whole loop."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import transformers

from deploy.examples import learn, retail
from deploy.examples.grpo import CLIP, Rates, Trainer, collated
from rollout_service.errors import BudgetReached
from tests.support import episodes
from tests.support.trajectories import make_member, make_segment

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def threads():
    """The example sets how many torch has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tokens", [1, 40, 16_384])
def test_the_gradient_of_grpo_is_that_of_the_plain_formula_whatever_number_of_tokens_the_model_takes(tmp_path, tokens):
    torch.manual_seed(0)
    model = learn.random_model(32, 1, tmp_path)
    groups = [
        [_sampled(group, sample, reward, model.config.vocab_size) for sample, reward in enumerate([0.0, 1.0, 0.0, 1.0])]
        for group in range(2)
    ]
    wanted = torch.autograd.grad(sum(_grpo_loss(model, group) for group in groups), list(model.parameters()))

    trainer = Trainer(model, "cpu", Rates(1e-3, 1e-3), tokens)
    trainer._descend = lambda: None  # so that the gradients of both halves stay
    trainer.improve(groups)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def _sampled(group, sample, reward, vocabulary):
    """A trajectory whose log-probs are nearly those of a model without knowledge, so that some ratios are clipped."""
    segment = make_segment(turns=1 + sample, seed=10 * group + 3 * sample)
    segment.token_ids %= vocabulary
    segment.logprobs[:] = -np.log(vocabulary) + np.random.default_rng(sample).normal(0.0, 0.3, len(segment.logprobs))
    segment.logprobs *= segment.loss_mask
    return make_member(group, sample, reward=reward, segments=[segment])


def _grpo_loss(model, group):
    """As the papers write it, over all positions of the padded batch at once."""
    tensors = collated([group])
    mask = tensors["loss_mask"]
    logits = model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
    new = logits.log_softmax(-1).gather(-1, tensors["target_ids"][..., None])[..., 0]
    ratio = torch.where(mask, new - tensors["old_logprobs"], 0.0).exp()
    advantages = tensors["advantages"][:, None]
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    return -(gain * mask).sum() / mask.sum()


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


def test_a_pretrained_model_imitates_then_improves_and_plays_the_test_split_before_between_and_after(
    cluster, threads, tmp_path, capsys, monkeypatch
):
    """In miniature: a random model stands for the pretrained one, and a few turns for an episode."""
    monkeypatch.setattr(retail, "MAX_TURNS", 2)
    model = learn.random_model(32, 1, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    few = {"demonstrations": 2, "epochs": 1, "steps": 2, "groups": 1, "group_size": 2, "trials": 1, "tasks": 1}
    engine = {"engine": "transformers", "engine_arguments": '{"device": "cpu"}', "device": "cpu", "transfer": "gloo"}
    retail.learn(tmp_path, str(tmp_path / "model"), "airline", **few, **engine, seed=3, context=8192, actors=1, slots=4)
    said = capsys.readouterr().out
    assert "demonstrations 60, imitated" in said
    result = json.loads((tmp_path / "airline-3.json").read_text())
    assert [*result["evaluations"]] == ["before", "imitation", "grpo"]
    assert {found["tasks"] for found in result["evaluations"].values()} == {1}
    assert [step["version"] for step in result["steps"]] == [1, 2], "the imitation's weights are the first update"
    errors = [step["logprob_error"] for step in result["steps"] if step["logprob_error"] is not None]
    assert errors
    assert max(errors) < 1e-3, "the service samples with the weights that came through the group, YaRN included"


def test_a_demonstration_that_names_an_order_which_nobody_told_it_is_not_grounded():
    scripts = {"user__script": {"own_words": True}, "policy__script": retail.SCRIPT}
    looked_up, guessed = (episodes.run("retail", place, **scripts) for place in (0, 73))
    assert (looked_up.reward, guessed.reward) == (1.0, 1.0)
    assert retail.grounded(looked_up)
    assert not retail.grounded(guessed)


def test_grpo_ends_with_the_time_and_the_report_shows_what_a_run_has_until_then(tmp_path, capsys):
    class Client:
        def stream(self, **asked):
            assert asked["budget"] == {"wall_seconds": 1.0}
            raise BudgetReached("budget.wall_seconds: 1 s are over")

    run = retail.Run(tmp_path, 7, None, "retail", 1, None)
    run.record({"reward": 0.25})
    run.improve(Client(), None, ends=0.0, groups=2)
    retail.report(tmp_path)
    said = capsys.readouterr().out
    assert "1 s are over" in said
    assert "0.25 → 0.25" in said


def test_the_trainer_s_model_keeps_its_rotary_frequencies_whatever_the_service_s_is_stored_in(tmp_path):
    learn.random_model(32, 1, tmp_path / "model").save_pretrained(tmp_path / "model")
    model, _ = retail.prepared(str(tmp_path / "model"), tmp_path / "served", 8192, torch.bfloat16)
    assert model.model.rotary_emb.attention_scaling > 1.0, "YaRN"
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    served = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "served", dtype="auto")
    assert {weight.dtype for weight in served.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, served.model.rotary_emb.inv_freq)
