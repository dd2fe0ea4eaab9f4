"""The examples that learn, in a short version: too few steps to see the reward rise, enough to see the whole loop."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
import json
import re
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from deploy.examples import learn, lookups, retail
from deploy.examples.grpo import CLIP, OneTypeCache, Rates, Trainer, collated
from deploy.examples.renaming import Digits
from rollout_service.chat.tokenizer_files import load_tokenizer
from rollout_service.collecting import judging
from rollout_service.errors import BudgetReached, ServiceError, TaskError, TooFewKept
from rollout_service.tau2.tasks import references
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


@pytest.mark.parametrize("rows", [1, 7])
def test_a_step_of_the_imitation_is_the_same_whether_one_device_computes_it_or_three(tmp_path, rows):
    torch.manual_seed(0)
    model = learn.random_model(32, 1, tmp_path)
    given = [_sampled(place, place % 3, 1.0, model.config.vocab_size) for place in range(rows)]
    told: list[list[float]] = []
    learned = []
    for beside in [], ["cpu", "cpu"]:
        torch.manual_seed(0)
        trainer = Trainer(copy.deepcopy(model), "cpu", Rates(1e-3, 1e-3), 40, beside)
        losses: list[float] = []
        trainer.imitate(given, 3, 4, lambda figures, to=losses: to.append(figures["loss"]))
        told.append(losses)
        learned.append(list(trainer.model.parameters()))
    assert told[1] == pytest.approx(told[0], rel=1e-4)
    assert told[0][0] > told[0][-1], "it learns"
    for one, three in zip(*learned, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-5)


def test_a_device_that_is_not_there_is_an_error_before_anything_is_played(tmp_path):
    with pytest.raises(RuntimeError, match="nowhere"):
        Trainer(learn.random_model(32, 1, tmp_path), "cpu", Rates(1e-3, 1e-3), beside=["nowhere"])


def test_imitation_then_grpo_with_each_step_s_weights_in_the_service(cluster, threads, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(learn, "EVALUATION_EPISODES", 8)
    monkeypatch.setattr(learn, "DEMONSTRATIONS", 64)
    monkeypatch.setattr(learn, "DEMONSTRATIONS_PER_STEP", 4)  # small steps learn as much from fewer tokens
    learn.learn(tmp_path, steps=4, groups=3, group_size=8, epochs=8, seed=5, hidden=64, layers=1)
    said = capsys.readouterr().out
    losses = [float(text) for text in re.findall(r"imitation \d+, loss (\S+),", said)]
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


def test_a_pretrained_model_imitates_then_improves_and_plays_both_splits_before_between_and_after(
    cluster, threads, tmp_path, capsys, monkeypatch
):
    """In miniature: a random model stands for the pretrained one, and a few turns for an episode. Twelve
    demonstrations are imitated: they are enough to change the weights."""
    grounded, place = retail.grounded, itertools.count()
    monkeypatch.setattr(retail, "grounded", lambda trajectory: grounded(trajectory) and next(place) < 12)
    monkeypatch.setattr(retail, "MAX_TURNS", 2)
    monkeypatch.setattr(judging, "informative", lambda group: True)  # the model solves nothing
    model = learn.random_model(32, 1, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    few = {"demonstrations": 2, "epochs": 1, "steps": 2, "groups": 1, "group_size": 2, "trials": 1, "tasks": 1}
    engine = {"engine": "transformers", "engine_arguments": '{"device": "cpu"}', "device": "cpu", "transfer": "gloo"}
    retail.learn(tmp_path, str(tmp_path / "model"), "airline", **few, **engine, seed=3, context=8192, actors=1, slots=4)
    said = capsys.readouterr().out
    assert "demonstrations 60, imitated 12," in said
    result = json.loads((tmp_path / "airline-3.json").read_text())
    assert [*result["evaluations"]] == ["before", "imitation", "grpo"]
    assert [found["tasks"] for rates in result["evaluations"].values() for found in rates.values()] == [1] * 6
    assert [step["version"] for step in result["steps"]] == [1, 2], "the imitation's weights are the first update"
    errors = [step["logprob_error"] for step in result["steps"] if step["logprob_error"] is not None]
    assert errors
    assert max(errors) < 1e-3, "the service samples with the weights that came through the group, YaRN included"


def test_imitated_rows_have_other_numbers_each_time_and_targets_that_follow_the_inputs(tmp_path):
    tokenizer, _ = load_tokenizer(None)
    trainer = Trainer(learn.random_model(32, 1, tmp_path), "cpu", Rates(1e-3, 1e-3))
    played = [
        dataclasses.replace(episodes.run("retail", place, user__script={"own_words": True}), trajectory_id=str(place))
        for place in (0, 5)
    ]
    first, again = (trainer._to_imitate(played, Digits.of(tokenizer)) for _ in range(2))
    plain = trainer._to_imitate(played, None)
    for tensors in first, again:
        assert torch.equal(tensors["input_ids"][:, 1:], tensors["target_ids"][:, :-1])
        assert torch.equal(tensors["loss_mask"], plain["loss_mask"])
    texts = [tokenizer.decode(tensors["input_ids"][0]) for tensors in (plain, first, again)]
    orders = [re.findall(r"#W\d{7}", text) for text in texts]
    assert orders[0].count("#W2378156") == orders[1].count(orders[1][-1]) == orders[2].count(orders[2][-1]) > 2
    assert len({found[-1] for found in orders}) == 3


def test_each_demonstration_is_imitated_once_an_epoch_and_sorting_saves_most_of_the_padding(tmp_path):
    given = [make_member(place, 0, segments=[make_segment(turns=1 + place % 8, seed=place)]) for place in range(64)]
    lengths = sorted(len(each.segments[0].token_ids) for each in given)
    padding = {}
    for steps_sorted in 1, 8:
        torch.manual_seed(0)
        trainer = Trainer(learn.random_model(32, 1, tmp_path), "cpu", Rates(1e-3, 1e-3))
        steps: list[list[int]] = []
        trainer._imitation_step = lambda tensors, _, to=steps: to.append(tensors["lengths"].tolist()) or 0.0
        trainer.imitate(given, 2, 4, lambda _: None, steps_sorted=steps_sorted)
        assert [len(step) for step in steps] == [4] * 32
        for epoch in steps[:16], steps[16:]:
            assert sorted(length for step in epoch for length in step) == lengths
        assert steps[:16] != steps[16:], "each epoch has an order of its own"
        padding[steps_sorted] = sum(max(step) * len(step) - sum(step) for step in steps)
    assert padding[8] < padding[1] / 2


def test_an_evaluation_that_fails_ends_the_imitation_beside_it_at_once(tmp_path):
    class Imitating:
        told = 0

        def imitate(self, demonstrations, epochs, per_step, tell, *_):
            for _ in range(epochs):
                self.told += 1
                tell({"loss": 1.0})

    trainer, failed, played = Imitating(), Future(), Future()
    run = retail.Run(tmp_path, 9, trainer, "retail", 1, None)
    failed.set_exception(ServiceError("the service is gone", "Start it again."))
    with pytest.raises(ServiceError, match="the service is gone"):
        run.imitate([], 5, None, np.inf, failed)
    assert trainer.told == 1
    played.set_result(None)
    run.imitate([], 5, None, np.inf, played)
    assert trainer.told == 6


def test_both_splits_are_evaluated_greedily_and_the_report_also_reads_runs_that_had_one(tmp_path, capsys):
    played = []

    class Client:
        def evaluate(self, **asked):
            played.append(asked)
            return SimpleNamespace(pass_rates=[SimpleNamespace(value=0.5, interval=(0.25, 0.75), tasks=4)])

    run = retail.Run(tmp_path, 1, None, "retail", 2, 4)
    run.evaluate(Client(), "before")
    assert [asked["split"] for asked in played] == ["test", "train"]
    assert {asked["sampling"]["temperature"] for asked in played} == {0.0}
    assert {asked["sampling"]["max_new_tokens"] for asked in played} == {256}
    older = {"seed": 2, "evaluations": {"before": {"pass_1": 0.1, "interval": [0.0, 0.2]}}, "steps": []}
    (tmp_path / "retail-2.json").write_text(json.dumps(older))
    retail.report(tmp_path)
    said = capsys.readouterr().out
    assert said.count("0.25–0.75") == 2
    assert (tmp_path / "retail.png").exists() == (importlib.util.find_spec("matplotlib") is not None)


def test_demonstrations_of_which_none_solves_its_task_are_a_clear_error(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(retail, "grounded", lambda trajectory: False)
    load_tokenizer(None)[0].save_pretrained(tmp_path)
    with pytest.raises(TaskError, match=r"None of \d+ demonstrations of airline solved its task"):
        retail.demonstrated("airline", tmp_path, 1, 0, 0, (1, 4, 8192))


def test_a_cache_that_is_given_keys_in_float32_keeps_the_type_of_the_values():
    cache = OneTypeCache()
    for _ in range(2):
        key, value = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4, dtype=torch.bfloat16)
        assert {each.dtype for each in cache.update(key, value, 0)} == {torch.bfloat16}


@pytest.fixture
def retail_with_lookups(tmp_path):
    """Plays the train task at a position, with look-ups."""
    path = str(lookups.write(tmp_path / "tasks.json", lookups.of_split("train")))

    def play(place):
        config = episodes.settings(
            tasks__path=path, tasks__domain="retail", user__script={"own_words": True}, policy__script=retail.SCRIPT
        )
        return episodes.runner(config).run(episodes.request(references("retail", path)[place]))

    return play


def test_a_task_that_names_an_order_which_nobody_told_it_looks_it_up_and_then_does_the_same(retail_with_lookups):
    guessed = episodes.run("retail", 73, user__script={"own_words": True}, policy__script=retail.SCRIPT)
    place = next(i for i, ref in enumerate(references("retail", "train")) if ref.task_id == guessed.task.task_id)
    looked_up = retail_with_lookups(place)
    assert (guessed.reward, looked_up.reward) == (1.0, 1.0)
    assert not retail.grounded(guessed)
    assert retail.grounded(looked_up)


def test_look_ups_change_no_write_of_any_task(tmp_path):
    def writes(actions):
        return [(each["name"], each["arguments"]) for each in actions if not each["name"].startswith(lookups.READING)]

    given = lookups.of_split("train")
    rewritten = json.loads(lookups.write(tmp_path / "tasks.json", given).read_text())
    assert len(rewritten) == len(given) == 74
    for old, new in zip(given, rewritten, strict=True):
        before, after = (task["evaluation_criteria"]["actions"] for task in (old, new))
        assert writes(before) == writes(after)
        read = [action["arguments"] for action in after if action["name"].startswith(lookups.READING)]
        assert len(read) == len({json.dumps(arguments) for arguments in read}), "nothing is read twice"


def test_grpo_ends_with_the_time_or_with_nothing_to_learn_and_the_report_shows_what_a_run_has_until_then(
    tmp_path, capsys
):
    class Client:
        def __init__(self, error):
            self.error = error

        def stream(self, **asked):
            assert asked["budget"] == {"wall_seconds": 1.0}
            asked["on_dropped"]([])
            raise self.error

    run = retail.Run(tmp_path, 7, None, "retail", 1, None)
    run.record({"reward": 0.25})
    for error in BudgetReached("budget.wall_seconds: 1 s are over"), TooFewKept("kept 0 groups"):
        run.improve(Client(error), None, ends=0.0, groups=2)
    retail.report(tmp_path)
    said = capsys.readouterr().out
    assert "1 s are over" in said
    assert "kept 0 groups" in said
    assert "0.25 → 0.25" in said


def test_a_step_s_reward_is_that_of_all_groups_played_also_of_those_that_teach_nothing(tmp_path, monkeypatch):
    mixed, failed, other = (
        [make_member(group, i, reward=r) for i, r in enumerate(rewards)]
        for group, rewards in enumerate([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    )

    class Client:
        def stream(self, **asked):
            assert asked["keep"] == "informative"
            for group in mixed, failed, other:
                if judging.informative(group):
                    yield group
                else:
                    asked["on_dropped"](group)

        def weight_version(self):
            return 1

        def update_weights(self, weights, group):
            assert weights == {}

    class Learner:
        model = None

        def logprob_error(self, trajectories, version):
            return None

        def improve(self, groups):
            return {"loss": 0.0}

    monkeypatch.setattr(retail, "own_weights", lambda model: {})
    run = retail.Run(tmp_path, 8, Learner(), "retail", 1, None)
    run.improve(Client(), None, ends=np.inf, groups=2)
    (step,) = json.loads((tmp_path / "retail-8.json").read_text())["steps"]
    assert step["reward"] == pytest.approx(2 / 6)
    assert step["informative"] == pytest.approx(2 / 3)


def test_the_trainer_s_model_keeps_its_rotary_frequencies_whatever_the_service_s_is_stored_in(tmp_path):
    learn.random_model(32, 1, tmp_path / "model").save_pretrained(tmp_path / "model")
    model, _ = retail.prepared(str(tmp_path / "model"), tmp_path / "served", 8192, torch.bfloat16)
    assert model.model.rotary_emb.attention_scaling > 1.0, "YaRN"
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    served = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "served", dtype="auto")
    assert {weight.dtype for weight in served.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, served.model.rotary_emb.inv_freq)
