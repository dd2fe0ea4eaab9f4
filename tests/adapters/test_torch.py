"""Tensors of the plain torch adapter, read back token by token against the trajectories that they were made of."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from rollout_service.adapters import checks
from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.torch import TrajectoryDataset, collate_packed, collate_padded
from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from rollout_service.errors import ConfigError, Fault, FaultKind, RolloutError
from rollout_service.record.trajectory import Outcome, Provenance, TokenSegment, Trajectory
from rollout_service.record.turn_arrays import FACTS
from rollout_service.record.turn_facts import TurnFacts
from tests.support.trajectories import make_member, make_segment, make_trajectory

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PAD = 99
REWARDS = st.floats(0, 1, width=32)


@st.composite
def groups(draw: st.DrawFn, rewards: st.SearchStrategy[float | None] = REWARDS) -> list[list[Trajectory]]:
    """Whole groups of one to four, each member with one or two segments."""
    segments = st.builds(make_segment, st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
    return [
        [
            make_member(group, sample, reward=draw(rewards), segments=draw(st.lists(segments, min_size=1, max_size=2)))
            for sample in range(draw(st.integers(1, 4)))
        ]
        for group in range(draw(st.integers(1, 3)))
    ]


def group(*rewards: float | None, name: str = "g", **fields: Any) -> list[Trajectory]:
    return [
        make_trajectory(trajectory_id=f"{name}-{i}", group_id=name, sample_index=i, reward=reward, **fields)
        for i, reward in enumerate(rewards)
    ]


def loaded() -> Any:
    """The embedded tokenizer, as a trainer loads one."""
    return transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)


def rows(padded: dict[str, torch.Tensor], packed: dict[str, torch.Tensor], name: str) -> Iterator[tuple[Any, Any]]:
    """Each row of the tensor, padding off, as both collates have it."""
    starts = packed["cu_seqlens"].tolist()
    for row, length in enumerate(padded["lengths"].tolist()):
        yield padded[name][row, :length], packed[name][starts[row] : starts[row + 1]]


@given(groups(REWARDS | st.none()))
@many
def test_padded_and_packed_hold_the_same_rows(made: list[list[Trajectory]]) -> None:
    padded = collate_padded(made, 0, unscored="mask")
    packed = collate_packed(made, unscored="mask")
    for name in ("input_ids", "target_ids", "loss_mask", "old_logprobs", "weight_versions", "position_ids"):
        assert padded[name].dtype == packed[name].dtype
        for left, right in rows(padded, packed, name):
            assert torch.equal(left, right), name
    for name in ("advantages", "lengths", "trajectory_index", "group_index"):
        assert torch.equal(padded[name], packed[name])
    assert packed["row_index"].bincount().tolist() == packed["lengths"].tolist()


@given(groups())
@many
def test_each_place_holds_what_its_logits_predict(made: list[list[Trajectory]]) -> None:
    padded, packed = collate_padded(made, PAD), collate_packed(made)
    stored = [segment for members in made for trajectory in members for segment in trajectory.segments]
    for name, source in (
        ("target_ids", "token_ids"),
        ("loss_mask", "loss_mask"),
        ("old_logprobs", "logprobs"),
        ("weight_versions", "weight_versions"),
    ):
        for segment, views in zip(stored, rows(padded, packed, name), strict=True):
            for view in views:
                assert view[:-1].tolist() == getattr(segment, source)[1:].tolist(), name
    for segment, views in zip(stored, rows(padded, packed, "input_ids"), strict=True):
        assert all(view.tolist() == segment.token_ids.tolist() for view in views)


@given(groups())
@many
def test_every_sampled_token_is_in_the_loss_exactly_once_and_nothing_else_is(made: list[list[Trajectory]]) -> None:
    sampled = sum(trajectory.policy_token_count for members in made for trajectory in members)
    for tensors in (collate_padded(made, PAD), collate_packed(made)):
        mask = tensors["loss_mask"]
        assert int(mask.sum()) == sampled
        assert (tensors["weight_versions"][mask] >= 0).all()
        assert (tensors["weight_versions"][~mask] == -1).all()
        assert (tensors["old_logprobs"][~mask] == 0).all()


@given(groups(REWARDS | st.none()), st.booleans())
@many
def test_advantages_of_a_group_sum_to_nothing_over_trajectories_not_rows(
    made: list[list[Trajectory]], scale: bool
) -> None:
    tensors = collate_padded(made, 0, scale=scale, unscored="mask")
    of_trajectory: dict[int, set[float]] = {}
    for index, advantage in zip(tensors["trajectory_index"].tolist(), tensors["advantages"].tolist(), strict=True):
        of_trajectory.setdefault(index, set()).add(advantage)
    assert all(len(values) == 1 for values in of_trajectory.values())
    position = 0
    for members in made:
        found = [next(iter(of_trajectory[position + i])) for i in range(len(members))]
        position += len(members)
        assert sum(found) == pytest.approx(0, abs=1e-2 if scale else 1e-6)
        scored = [(m.reward, a) for m, a in zip(members, found, strict=True) if m.reward is not None]
        assert [a for _, a in sorted(scored)] == sorted(a for _, a in scored)  # a larger reward, a larger advantage


def test_advantages_are_those_of_grpo_and_without_scale_of_dr_grpo() -> None:
    made = group(1.0, 0.0, 0.0, 1.0)
    assert collate_padded([made], 0)["advantages"].tolist() == pytest.approx([1, -1, -1, 1], abs=1e-4)
    assert collate_padded([made], 0, scale=False)["advantages"].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert collate_padded([group(0.3, 0.3, 0.3)], 0)["advantages"].tolist() == [0, 0, 0]


def test_a_masked_trajectory_teaches_nothing_and_moves_no_mean() -> None:
    made = group(1.0, None, 0.0)
    for tensors in (collate_padded([made], 0, unscored="mask"), collate_packed([made], unscored="mask")):
        assert tensors["advantages"].tolist() == pytest.approx([1, 0, -1], abs=1e-4)
        of_row = tensors.get("row_index", torch.arange(3)[:, None].expand(-1, tensors["loss_mask"].shape[-1]))
        assert not tensors["loss_mask"][of_row == 1].any()
        assert not tensors["old_logprobs"][of_row == 1].any()
        assert (tensors["weight_versions"][of_row == 1] == -1).all()
        assert tensors["loss_mask"][of_row == 0].any()
        assert torch.isnan(tensors["rewards"]).tolist() == [False, True, False]


def test_shapes_and_types_are_those_that_are_documented() -> None:
    made = [group(1.0, 0.0, segments=[make_segment(1), make_segment(2)])]
    padded, packed = collate_padded(made, 0), collate_packed(made)
    total, longest = int(padded["lengths"].sum()), int(padded["lengths"].max())
    per_token = {
        "input_ids": torch.int64,
        "position_ids": torch.int64,
        "target_ids": torch.int64,
        "loss_mask": torch.bool,
        "old_logprobs": torch.float32,
        "weight_versions": torch.int32,
    }
    per_row = {
        "advantages": torch.float32,
        "rewards": torch.float32,
        "oldest_versions": torch.int32,
        "lengths": torch.int64,
        "trajectory_index": torch.int64,
        "group_index": torch.int64,
    }
    assert {name: t.dtype for name, t in padded.items()} == per_token | per_row | {"attention_mask": torch.int64}
    assert {name: t.dtype for name, t in packed.items()} == per_token | per_row | {
        "cu_seqlens": torch.int32,
        "row_index": torch.int64,
    }
    assert {tuple(padded[name].shape) for name in [*per_token, "attention_mask"]} == {(4, longest)}
    assert {tuple(packed[name].shape) for name in [*per_token, "row_index"]} == {(total,)}
    assert {tuple(tensors[name].shape) for name in per_row for tensors in (padded, packed)} == {(4,)}
    assert padded["attention_mask"].sum(-1).tolist() == padded["lengths"].tolist()


def test_the_ratio_of_the_sampling_policy_with_itself_is_one() -> None:
    """A table of logits stands for the model: the recipe of the module's docstring, run."""
    temperature = 0.7
    logits = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    table = (logits / temperature).log_softmax(-1)

    def sampled(seed: int) -> TokenSegment:
        segment = make_segment(seed=seed)
        ids = segment.token_ids % 50
        given = np.concatenate([[0], table[ids[:-1], ids[1:]].numpy()]).astype(np.float32) * segment.loss_mask
        return dataclasses.replace(segment, token_ids=ids, logprobs=given)

    provenance = Provenance(sampling={"temperature": temperature})
    made = [make_trajectory(segments=[sampled(i)], sample_index=i, provenance=provenance) for i in range(3)]
    for tensors in (collate_padded(made, 0), collate_packed(made)):
        predicted, target_ids = logits[tensors["input_ids"]], tensors["target_ids"]
        logprobs = (predicted / temperature).log_softmax(-1).gather(-1, target_ids[..., None])[..., 0]
        ratio = (logprobs - tensors["old_logprobs"]).exp()[tensors["loss_mask"]]
        assert len(ratio) > 0
        torch.testing.assert_close(ratio, torch.ones_like(ratio))


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_of_the_object_store_become_writable_tensors_and_stay_as_they_were() -> None:
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(make_trajectory(), protocol=5, buffer_callback=buffers.append)
    received: Trajectory = pickle.loads(sent, buffers=[bytes(buffer) for buffer in buffers])
    before = received.segments[0].token_ids.tolist()
    assert not received.segments[0].token_ids.flags.writeable
    for tensors in (collate_padded([received], 0), collate_packed([received])):
        for tensor in tensors.values():
            tensor.zero_()
    assert received.segments[0].token_ids.tolist() == before


@pytest.mark.parametrize("collate", [lambda items, **more: collate_padded(items, 0, **more), collate_packed])
def test_a_row_over_the_limit_is_refused_and_never_cut(collate: Any) -> None:
    made = [make_trajectory(segments=[make_segment(1, 8)])]
    with pytest.raises(ConfigError, match="11 tokens, more than max_length=10"):
        collate(made, max_length=10)
    assert collate(made, max_length=11)["lengths"].tolist() == [11]


def test_an_episode_that_never_began_has_no_row_and_no_tokenizer_to_differ() -> None:
    made = group(1.0, 0.0, provenance=Provenance(tokenizer_fingerprint="aaaa"))
    lost = make_trajectory(group_id="g", sample_index=2, reward=None, segments=[], outcome=Outcome.ABORTED)
    tensors = collate_padded([[lost, *made]], 0, unscored="mask", tokenizer_fingerprint="aaaa")
    assert tensors["trajectory_index"].tolist() == [1, 2]
    assert tensors["advantages"].tolist() == pytest.approx([1, -1], abs=1e-4)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_missing_reward_is_refused_with_its_cause() -> None:
    fault = Fault(FaultKind.USER_SIMULATOR, "Timeout", "no answer", retryable=True)
    aborted = {"outcome": Outcome.ABORTED, "termination_reason": "fault", "fault": fault}
    with pytest.raises(TrainingDataError, match=r"'g-0': reward is None.*user_simulator: no answer.*unscored=\"mask\""):
        collate_padded([group(None, **aborted)], 0)
    with pytest.raises(ConfigError, match=r"unscored is 'drop'.*refuse, mask"):
        collate_padded([group(1.0)], 0, unscored="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kept", "size"), [([1, 2], None), ([0, 2], None), ([0, 1], 3), ([0, 0, 1], None)])
def test_a_group_that_is_not_whole_is_refused(kept: list[int], size: int | None) -> None:
    whole = group(1.0, 0.0, 0.5)
    with pytest.raises(TrainingDataError, match=r"Group 'g' is not whole: sample_index has \[.*whole groups"):
        collate_packed([whole[i] for i in kept], group_size=size)
    assert len(collate_packed([whole[i] for i in (2, 0, 1)], group_size=3)["advantages"]) == 3


def test_mixed_tokenizers_are_refused() -> None:
    made = [
        make_trajectory(sample_index=i, trajectory_id=name, provenance=Provenance(tokenizer_fingerprint=name))
        for i, name in enumerate(["aaaa", "bbbb"])
    ]
    with pytest.raises(TrainingDataError, match=r"'bbbb': provenance.tokenizer_fingerprint is 'bbbb'.*not 'aaaa'"):
        collate_padded(made, 0)
    with pytest.raises(TrainingDataError, match=r"is 'aaaa'.*not 'cccc'"):
        collate_padded(made[:1], 0, tokenizer_fingerprint="cccc")
    assert len(collate_padded(made[:1], 0, tokenizer_fingerprint="aaaa")["lengths"]) == 1


def test_a_trainers_tokenizer_is_known_by_the_fingerprint_of_the_service_whatever_its_padding(embedded) -> None:
    tokenizer = loaded()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a b", "c"], padding=True)
    assert tokenizer.backend_tokenizer.padding is not None
    assert checks.tokenizer_fingerprint(tokenizer) == embedded.tokenizer_fingerprint
    assert tokenizer.backend_tokenizer.padding is not None
    tokenizer.add_tokens(["<extra>"])
    assert checks.tokenizer_fingerprint(tokenizer) != embedded.tokenizer_fingerprint


def test_missing_logprobs_are_refused_on_sampled_tokens_only() -> None:
    segment = make_segment()
    segment.logprobs[segment.loss_mask == 0] = np.nan
    checks.check_logprobs([make_trajectory(segments=[segment])])
    segment.logprobs[-1] = np.nan
    with pytest.raises(TrainingDataError, match=r"segments\[0\].logprobs has no finite value for 1 of 8 sampled"):
        collate_padded([make_trajectory(segments=[segment])], 0)
    segment.logprobs = segment.logprobs[:0]
    with pytest.raises(TrainingDataError, match=r"logprobs has 0 values for \d+ tokens"):
        collate_padded([make_trajectory(segments=[segment])], 0)


@pytest.mark.parametrize(
    ("sampling", "problem"),
    [
        ({"temperature": 0.0}, r"temperature is 0.0: greedy"),
        ({"temperature": 1.0, "top_p": 0.9}, r"top_p is 0.9.*Collect what is trained on with top_p 1"),
        ({"temperature": 1.0, "top_k": 20}, r"top_k is 20.*Collect what is trained on with top_k -1"),
    ],
)
def test_sampling_that_no_importance_ratio_fits_is_refused(sampling: dict[str, float], problem: str) -> None:
    made = group(1.0, 0.0, provenance=Provenance(sampling=sampling))
    with pytest.raises(TrainingDataError, match=rf"'g-0': provenance.sampling.{problem}"):
        collate_padded([made], 0)
    with pytest.raises(TrainingDataError, match=problem):
        collate_packed([made])


def test_a_batch_of_two_temperatures_is_refused_and_one_other_than_1_is_not() -> None:
    made = [
        *group(1.0, 0.0, name="a"),
        *group(1.0, 0.0, name="b", provenance=Provenance(sampling={"temperature": 0.7})),
    ]
    with pytest.raises(TrainingDataError, match=r"'b-0': provenance.sampling.temperature is 0.7, and 1.0 for others"):
        collate_padded(made, 0)
    assert len(collate_padded(made[2:], 0)["lengths"]) == 2
    lost = make_trajectory(group_id="a", sample_index=2, reward=None, segments=[], provenance=Provenance())
    assert len(collate_padded([*made[:2], lost], 0, unscored="mask")["lengths"]) == 2


# The dataset ---------------------------------------------------------------------------------------------------------


class Stream:
    """As a client's stream: groups, and whether the rest was cancelled."""

    def __init__(self, made: list[list[Trajectory]]) -> None:
        self._left = iter(made)
        self.closed = False

    def __iter__(self) -> Iterator[list[Trajectory]]:
        return self._left

    def close(self) -> None:
        self.closed = True


class Client:
    """Gives these groups to each stream and keeps what it was asked."""

    def __init__(self, *made: list[Trajectory]) -> None:
        self._made = list(made)
        self.asked: list[dict[str, Any]] = []
        self.streams: list[Stream] = []

    def stream(self, **arguments: Any) -> Stream:
        self.asked.append(arguments)
        self.streams.append(Stream(self._made))
        return self.streams[-1]


def test_a_dataset_gives_groups_as_they_come_and_asks_anew_each_pass() -> None:
    client = Client(group(1.0, 0.0, name="a"), group(0.0, 1.0, name="b"))
    dataset = TrajectoryDataset(client, 4, group_size=2, domain="mock", seed=3)  # type: ignore[arg-type]
    for _ in range(2):
        assert [[t.trajectory_id for t in members] for members in dataset] == [["a-0", "a-1"], ["b-0", "b-1"]]
    assert client.asked == [{"n": 4, "group_size": 2, "domain": "mock", "seed": 3}] * 2
    assert all(stream.closed for stream in client.streams)


def test_a_pass_that_is_left_early_cancels_the_rest() -> None:
    client = Client(group(1.0, name="a"), group(0.0, name="b"))
    groups_of_pass = iter(TrajectoryDataset(client))  # type: ignore[arg-type]
    next(groups_of_pass)
    assert not client.streams[0].closed
    groups_of_pass.close()  # type: ignore[attr-defined]
    assert client.streams[0].closed


def test_a_loader_without_workers_batches_whole_groups() -> None:
    client = Client(*(group(1.0, 0.0, name=name) for name in "abc"))
    loader = DataLoader(
        TrajectoryDataset(client, group_size=2),  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=lambda items: collate_padded(items, 0, group_size=2),
    )
    assert [tensors["group_index"].tolist() for tensors in loader] == [[0, 0, 1, 1], [0, 0]]


def test_a_loader_with_workers_is_refused_in_words() -> None:
    loader = DataLoader(TrajectoryDataset(Client(group(1.0))), num_workers=1, batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(RolloutError, match="Set num_workers=0"):
        list(loader)


@pytest.mark.filterwarnings("error::UserWarning")
def test_groups_of_a_running_service_become_tensors(client) -> None:
    dataset = TrajectoryDataset(client, 4, group_size=2, domain="mock", split="base")
    for members in dataset:
        assert not members[0].segments[0].token_ids.flags.writeable  # it lies in the object store
        tensors = collate_packed(members, group_size=2, tokenizer_fingerprint=checks.tokenizer_fingerprint(loaded()))
        assert int(tensors["loss_mask"].sum()) == sum(member.policy_token_count for member in members) > 0
        assert tensors["rewards"].tolist() == [member.reward for member in members]


def test_the_adapters_import_without_any_trainer() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'trl', 'verl', 'transformers')))\n"
        "from rollout_service.adapters import torch, trl, verl\n"
        "client = type('Client', (), {'stream': lambda self, **_: open('/dev/null')})()\n"
        "assert list(torch.TrajectoryDataset(client)) == []\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r'pip install "tau2-rollout-service\[torch\]"'):
        collate_packed([make_trajectory()])


@given(groups(REWARDS | st.none()))
@many
def test_facts_of_turns_stand_at_the_logits_that_predict_the_turn_s_tokens(made: list[list[Trajectory]]) -> None:
    batch = [trajectory for members in made for trajectory in members]
    for number, turn in enumerate(turn for trajectory in batch for turn in trajectory.turns):
        turn.facts = TurnFacts(1, 0, False, list(range(number)), [])
    padded = collate_padded(made, PAD, unscored="mask", turn_facts=True)
    packed = collate_packed(made, unscored="mask", turn_facts=True)
    for tensors in (padded, packed):
        assert ((tensors["turn_index"] >= 0) == tensors["loss_mask"]).all()
    of_token = padded["turn_gold_actions"].gather(1, padded["turn_index"].clamp(min=0))
    wanted = packed["turn_gold_actions"][packed["turn_index"].clamp(min=0)]
    assert packed["turn_gold_actions"].tolist() == list(range(sum(len(trajectory.turns) for trajectory in batch)))
    assert of_token[padded["loss_mask"]].tolist() == wanted[packed["loss_mask"]].tolist()
    learned = [trajectory for trajectory in batch if trajectory.is_scored]
    sampled = [len(turn.facts.gold_actions) for t in learned for turn in t.turns for _ in range(turn.start, turn.end)]
    assert wanted[packed["loss_mask"]].tolist() == sampled


def test_the_credit_per_turn_of_the_documents_is_what_it_says() -> None:
    made = group(1.0, 0.0)
    first, second = make_segment(turns=2, turn_length=2), make_segment(turns=2, turn_length=2)
    first.turns[0].facts, first.turns[1].facts = TurnFacts(1, 0, True, [0, 1], []), TurnFacts(0, 1, False, [], [0])
    made[0].segments, made[1].segments = [first], [second]
    tensors = collate_padded([made], 0, turn_facts=True)
    text = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
    loop = text.split("turn_facts=True, **own)\n", 1)[1].split("```", 1)[0].split("\n", 1)[1]
    found: dict[str, Any] = {"tensors": tensors}
    exec(textwrap.dedent(loop), found)
    assert found["per_token"][0].tolist() == pytest.approx([0, 0, 0.5, 0.5, 0, 0, 0.1, 0.1, 0])
    assert found["per_token"][1].tolist() == [0] * 9
    assert found["advantages"][0, 2].item() == pytest.approx(tensors["advantages"][0].item() + 0.5)


def test_facts_of_turns_are_left_out_unless_they_are_asked_for() -> None:
    made = group(1.0, 0.0)
    without, with_facts = collate_padded([made], 0), collate_padded([made], 0, turn_facts=True)
    assert not [name for name in without if name.startswith("turn_")]
    assert {name for name in with_facts if name not in without} == {"turn_index", *(f"turn_{name}" for name in FACTS)}
    assert all(torch.equal(without[name], with_facts[name]) for name in without)
    assert with_facts["turn_valid_calls"].tolist() == [[-1, -1], [-1, -1]]


@given(rewards=st.lists(st.none() | REWARDS, min_size=1, max_size=5))
@many
def test_tensors_of_a_partial_group_have_the_advantages_of_the_members_that_are_there(rewards):
    whole = group(*rewards)
    there = group(*[reward for reward in rewards if reward is not None])
    partial, alone = (collate_padded([members], pad_token_id=PAD, unscored="mask") for members in (whole, there))
    is_there = torch.tensor([trajectory.is_scored for trajectory in whole])
    assert torch.equal(partial["advantages"][is_there], alone["advantages"])
    assert not partial["loss_mask"][~is_there].any(), "nothing is learned from the others"
    assert partial["rewards"][~is_there].isnan().all()
