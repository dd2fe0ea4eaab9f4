"""The transformers engine on a tiny random model, against plain forward passes of the same weights."""

from __future__ import annotations

import asyncio
import functools
import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import distributed

from deploy.engines import batch, packed, parameters
from deploy.engines.transformers import TransformersEngine
from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, WeightError
from rollout_service.policy import process_group
from rollout_service.policy.base import Generation, RequestError, TurnInfo
from rollout_service.policy.resume import resumed
from rollout_service.policy.weights import (
    BroadcastTensors,
    Bucket,
    Checkpoint,
    Layers,
    Rendezvous,
    StoredTensors,
    TensorSpec,
    WeightSource,
    spec,
    stored,
)
from tests.support import tiny_model

TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two that share so small a matrix wait for each other most of the time, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("old"), seed=0)


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("new"), seed=1)


@pytest.fixture
def start() -> Iterator[Callable[..., TransformersEngine]]:
    """Starts engines, which end with the test."""
    engines = []

    def started(model: Path, **arguments: Any) -> TransformersEngine:
        policy = PolicyConfig(engine="transformers", model=str(model), engine_arguments={"device": "cpu"} | arguments)
        engines.append(TransformersEngine(policy))
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(start, old) -> TransformersEngine:
    return start(old)


@functools.cache
def plain(model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model)


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4000, size=length, dtype=np.int32)


def sample(engine: TransformersEngine, ids: np.ndarray, **sampling: Any) -> asyncio.Task[Generation]:
    return asyncio.ensure_future(engine.generate(ids, Sampling(**sampling), TurnInfo()))


def scored(model: Path, ids: np.ndarray, tokens: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Log-probs of the tokens behind the ids."""
    with torch.no_grad():
        logits = plain(model)(torch.from_numpy(np.concatenate([ids, tokens])).long()[None]).logits[0, len(ids) - 1 : -1]
    table = (logits / (temperature or 1.0)).log_softmax(-1)
    return table[torch.arange(len(tokens)), torch.from_numpy(tokens).long()].numpy()


def assert_scored(generation: Generation, model: Path, ids: np.ndarray, temperature: float = 1.0) -> None:
    assert generation.logprobs.dtype == np.float32
    expected = scored(model, ids, generation.token_ids, temperature)
    np.testing.assert_allclose(generation.logprobs, expected, atol=TOLERANCE)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.001)


def sampled(engine: TransformersEngine) -> int:
    """Tokens that the running turns have."""
    return sum(len(turn.logprobs) for turn in list(engine._batch._running))


class Put:
    """As Ray's reference of an object: awaiting it gives the object."""

    def __init__(self, data: np.ndarray) -> None:
        self._data = data

    def __await__(self) -> Generator[None, None, np.ndarray]:
        yield from asyncio.sleep(0).__await__()
        return self._data


async def load(engine: TransformersEngine, source: WeightSource, version: int, *, keep_cache: bool) -> None:
    """Bring the weights to the engine and have it load them."""
    await engine.load(await engine.stage(source), version, keep_cache=keep_cache)


def weights(model: Path) -> dict[str, torch.Tensor]:
    return dict(plain(model).state_dict())


# Sampling ------------------------------------------------------------------------------------------------------------


async def test_logprobs_are_those_of_a_plain_forward_pass(engine, old):
    ways: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"temperature": 0.0},
        {"top_p": 0.5},  # log-probs are of the whole distribution
        {"top_k": 3, "temperature": 0.8},
    ]
    prompts = [prompt(1 + 211 * number, seed=number) for number in range(len(ways))]
    turns = await asyncio.gather(
        *(sample(engine, ids, max_new_tokens=24, **way) for ids, way in zip(prompts, ways, strict=True))
    )
    for ids, way, turn in zip(prompts, ways, turns, strict=True):
        assert_scored(turn, old, ids, way.get("temperature", 1.0))
        assert (turn.weight_versions == 0).all()
        assert (turn.finish_reason, turn.prompt_tokens, len(turn.token_ids)) == ("length", len(ids), 24)
        turn.check()


async def test_greedy_takes_the_likeliest_token(engine, old):
    ids = prompt(20)
    turn = await sample(engine, ids, temperature=0, max_new_tokens=8)
    with torch.no_grad():
        logits = plain(old)(torch.from_numpy(np.concatenate([ids, turn.token_ids])).long()[None]).logits[0]
    assert turn.token_ids.tolist() == logits[19:-1].argmax(-1).tolist()
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        again = await sample(engine, ids, max_new_tokens=8, **narrow)
        assert again.token_ids.tolist() == turn.token_ids.tolist()


def test_tokens_come_as_often_as_their_probability_says():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.05, 0.5, 0.0, 0.3, 0.15])
    logits = probabilities.log().repeat(4000, 1)
    expected = {
        (1.0, -1): [0.05, 0.5, 0.0, 0.3, 0.15],
        (0.75, -1): [0.0, 0.625, 0.0, 0.375, 0.0],
        (1.0, 3): [0.0, 0.5 / 0.95, 0.0, 0.3 / 0.95, 0.15 / 0.95],
    }
    for (top_p, top_k), shares in expected.items():
        tokens, logprobs = packed.sample(logits, [Sampling(top_p=top_p, top_k=top_k)] * 4000)
        counted = np.bincount(tokens, minlength=5) / 4000
        np.testing.assert_allclose(counted, shares, atol=0.03)
        assert (counted == 0).tolist() == [share == 0 for share in shares]
        np.testing.assert_allclose(np.exp(logprobs), probabilities[tokens], rtol=1e-5)


async def test_a_turn_ends_with_a_stop_token(engine):
    ids = prompt(20)
    whole = await sample(engine, ids, temperature=0, max_new_tokens=12)
    last = int(whole.token_ids[4])
    stopped = await sample(engine, ids, temperature=0, max_new_tokens=12, stop_token_ids=(last,))
    end = whole.token_ids.tolist().index(last) + 1
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids.tolist() == whole.token_ids[:end].tolist()
    ignored = await sample(engine, ids, temperature=0, max_new_tokens=12, stop_token_ids=(last,), ignore_eos=True)
    assert ignored.finish_reason == "length"
    assert ignored.token_ids.tolist() == whole.token_ids.tolist()


async def test_a_turn_ends_with_the_models_own_end_of_turn(start, old, tmp_path):
    ids = prompt(20)
    whole = await sample(start(old), ids, temperature=0, max_new_tokens=12)
    model = tmp_path / "model"
    shutil.copytree(old, model)
    transformers.GenerationConfig(eos_token_id=[7, int(whole.token_ids[0])]).save_pretrained(model)
    turn = await sample(start(model), ids, temperature=0, max_new_tokens=12)
    assert (turn.finish_reason, turn.token_ids.tolist()) == ("stop", whole.token_ids[:1].tolist())


async def test_ids_that_the_model_does_not_know_fail_their_own_request_only(engine):
    good = sample(engine, prompt(9), max_new_tokens=20)
    for bad, word in (([], "is empty"), ([3, 4096], "has 4096; .* are 0 to 4095"), ([-1], "has -1; .* are 0 to 4095")):
        with pytest.raises(RequestError, match=f"^input_ids {word}"):
            await sample(engine, np.array(bad, dtype=np.int32))
    with pytest.raises(RequestError, match=r"^stop_token_ids has 4096; the model's ids are 0 to 4095$"):
        await sample(engine, prompt(9), stop_token_ids=(5, 4096))
    assert len((await good).token_ids) == 20


# The prefix cache ----------------------------------------------------------------------------------------------------


async def test_a_sessions_next_turn_is_computed_from_where_the_last_one_ended(engine, old):
    first, others = prompt(300), prompt(290, seed=5)
    turn, _ = await asyncio.gather(*(sample(engine, ids, max_new_tokens=30) for ids in (first, others)))
    assert turn.cached_tokens == 0
    second = np.concatenate([first, turn.token_ids, prompt(40, seed=9)])
    turns = await asyncio.gather(*(sample(engine, second, max_new_tokens=30) for _ in range(2)))
    for turn in turns:
        assert turn.cached_tokens == 329  # the last token of the first turn was never fed
        assert_scored(turn, old, second)


async def test_turns_that_begin_alike_share_what_one_of_them_computed(engine, old):
    system = prompt(1200)
    prompts = [np.concatenate([system, prompt(30, seed=number)]) for number in range(4)]
    turns = await asyncio.gather(*(sample(engine, ids, max_new_tokens=5) for ids in prompts))
    assert sum(turn.cached_tokens for turn in turns) > 2 * 1024
    for ids, turn in zip(prompts, turns, strict=True):
        assert_scored(turn, old, ids)


async def test_ended_turns_are_dropped_when_the_cache_is_full(engine, old):
    engine._batch._room = 400_000  # bytes: of about 600 tokens, and room to grow
    turns = [await sample(engine, prompt(200, seed=number), max_new_tokens=2) for number in range(4)]
    assert [turn.finish_reason for turn in turns] == ["length"] * 4
    forgotten, kept = prompt(200, seed=0), prompt(200, seed=3)
    assert (await sample(engine, forgotten, max_new_tokens=2)).cached_tokens == 0
    assert (await sample(engine, kept, max_new_tokens=2)).cached_tokens == 199
    assert sum(context.bytes for context in engine._batch._kept) <= 400_000
    engine._batch._room = 0  # one runs all the same, and the others after it
    turns = await asyncio.gather(*(sample(engine, prompt(50, seed=n), max_new_tokens=4) for n in range(3)))
    for number, turn in enumerate(turns):
        assert_scored(turn, old, prompt(50, seed=number))


# Interruptions -------------------------------------------------------------------------------------------------------


async def test_a_cancelled_turn_leaves_the_batch(engine):
    turn = sample(engine, prompt(10), max_new_tokens=60_000, ignore_eos=True)
    await until(lambda: sampled(engine) > 2)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    await until(lambda: not len(engine._batch))
    assert len((await sample(engine, prompt(10), max_new_tokens=3)).token_ids) == 3


async def test_a_turn_beyond_the_context_is_refused(engine):
    with pytest.raises(
        RequestError, match="10 input_ids and max_new_tokens of 65527 are more than the context of 65536"
    ):
        await sample(engine, prompt(10), max_new_tokens=65_527)


async def test_an_interrupted_turn_resumes_as_one(engine, old):
    reasons: list[str] = []

    async def part(ids: np.ndarray, sampling: Sampling) -> Generation:
        made = await engine.generate(ids, sampling, TurnInfo())
        reasons.append(made.finish_reason)
        return made

    ids = prompt(50)
    turn = asyncio.ensure_future(resumed(part, ids, Sampling(max_new_tokens=400, temperature=0.7, ignore_eos=True)))
    for number in range(3):
        await until(lambda: sampled(engine) > 2)
        engine.interrupt()
        await until(lambda count=number: len(reasons) > count)
    whole = await turn
    assert reasons == ["abort"] * 3 + ["length"]
    assert len(whole.token_ids) == 400
    assert_scored(whole, old, ids, 0.7)


async def test_an_interrupt_reaches_turns_that_have_not_begun(engine):
    await engine.freeze()
    turn = sample(engine, prompt(10))
    await asyncio.sleep(0.02)
    engine.interrupt()
    made = await asyncio.wait_for(turn, 60)
    assert (made.finish_reason, len(made.token_ids), made.prompt_tokens) == ("abort", 0, 10)


async def test_a_turn_says_how_long_it_waited_until_its_first_step_or_its_end(engine, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(batch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    waited = []
    for go_on in (engine.thaw, lambda: asyncio.to_thread(engine.interrupt)):
        await engine.freeze()
        turn = sample(engine, prompt(10), max_new_tokens=3, ignore_eos=True)
        await asyncio.sleep(0)  # it is asked for
        now[0] += 3.0
        await go_on()
        waited.append((await turn).queue_seconds)
    assert waited == [3.0, 3.0]


async def test_a_frozen_engine_samples_nothing(engine, old):
    ids = prompt(30)
    turn = sample(engine, ids, max_new_tokens=300, ignore_eos=True)
    await until(lambda: sampled(engine) > 2)
    await engine.freeze()
    before = sampled(engine)
    later = sample(engine, prompt(5), max_new_tokens=1)
    await asyncio.sleep(0.1)
    assert sampled(engine) == before
    assert not later.done()
    await engine.thaw()
    assert_scored(await turn, old, ids)
    await later


# Weights -------------------------------------------------------------------------------------------------------------


async def loaded_in_mid_turn(engine: TransformersEngine, new: Path, ids: np.ndarray, *, keep: bool) -> Generation:
    turn = sample(engine, ids, max_new_tokens=300, ignore_eos=True)
    await until(lambda: sampled(engine) > 10)
    await engine.freeze()
    count = sampled(engine)
    await load(engine, Checkpoint(str(new)), 1, keep_cache=keep)
    await engine.thaw()
    made = await turn
    assert made.weight_versions.tolist() == [0] * count + [1] * (300 - count)
    return made


async def test_new_weights_go_on_with_the_cache_of_the_old(engine, old, new):
    ids = prompt(600)
    turn = await loaded_in_mid_turn(engine, new, ids, keep=True)
    count = int((turn.weight_versions == 0).sum())
    np.testing.assert_allclose(turn.logprobs[:count], scored(old, ids, turn.token_ids[:count]), atol=TOLERANCE)
    tokens = torch.from_numpy(turn.token_ids).long()
    with torch.no_grad():  # the last token that the old weights sampled is the first that the new ones see
        seen = torch.cat([torch.from_numpy(ids).long(), tokens[: count - 1]])
        cache = plain(old)(seen[None], use_cache=True).past_key_values
        logits = plain(new)(tokens[None, count - 1 : -1], past_key_values=cache).logits[0]
    expected = logits.log_softmax(-1)[torch.arange(300 - count), tokens[count:]]
    np.testing.assert_allclose(turn.logprobs[count:], expected, atol=TOLERANCE)


async def test_without_its_cache_a_turn_goes_on_as_if_the_new_weights_had_read_it(engine, old, new):
    ids = prompt(600)
    turn = await loaded_in_mid_turn(engine, new, ids, keep=False)
    count = int((turn.weight_versions == 0).sum())
    np.testing.assert_allclose(turn.logprobs[:count], scored(old, ids, turn.token_ids[:count]), atol=TOLERANCE)
    expected = scored(new, np.concatenate([ids, turn.token_ids[:count]]), turn.token_ids[count:])
    np.testing.assert_allclose(turn.logprobs[count:], expected, atol=TOLERANCE)


async def test_a_new_episode_reuses_only_what_its_own_weights_computed_and_an_old_one_says_what_it_goes_on_over(
    engine, old, new
):
    system = prompt(900)
    first, second, third = (np.concatenate([system, prompt(30, seed=number)]) for number in range(3))
    began = await sample(engine, first, max_new_tokens=8)
    assert (began.prefix_version, began.cached_tokens) == (0, 0)
    await load(engine, Checkpoint(str(new)), 1, keep_cache=True)

    fresh = await sample(engine, second, max_new_tokens=8)
    assert (fresh.prefix_version, fresh.cached_tokens) == (1, 0)
    assert_scored(fresh, new, second)
    sibling = await sample(engine, third, max_new_tokens=8)
    assert (sibling.prefix_version, sibling.cached_tokens) == (1, len(system)), (
        "they share what the new weights computed"
    )
    assert_scored(sibling, new, third)

    longer = np.concatenate([first, began.token_ids, prompt(5, seed=9)])
    goes_on = await engine.generate(longer, Sampling(max_new_tokens=8), TurnInfo(prefix_version=began.prefix_version))
    assert goes_on.cached_tokens == len(first) + 7, "its own keys and values, of both turns"
    assert (goes_on.prefix_version, set(goes_on.weight_versions.tolist())) == (0, {1})
    assert np.abs(goes_on.logprobs - scored(new, longer, goes_on.token_ids)).max() > 1, "those of a mixture"

    await load(engine, Checkpoint(str(old)), 2, keep_cache=False)
    again = await engine.generate(longer, Sampling(max_new_tokens=8), TurnInfo(prefix_version=0))
    assert (again.prefix_version, again.cached_tokens) == (2, 0), "nothing older is left"
    assert_scored(again, old, longer)


async def test_a_turn_under_which_the_weights_change_in_place_says_those_of_its_prompt(engine, new):
    kept = await loaded_in_mid_turn(engine, new, prompt(200), keep=True)
    assert kept.prefix_version == 0


async def test_a_prompt_that_is_half_computed_when_the_weights_change_is_of_the_older(engine, new):
    ids = prompt(5000)
    turn = sample(engine, ids, max_new_tokens=2)
    await until(lambda: any(t.context.seen for t in list(engine._batch._running)))
    await engine.freeze()
    assert sampled(engine) == 0
    await load(engine, Checkpoint(str(new)), 1, keep_cache=True)
    await engine.thaw()
    made = await turn
    assert (made.prefix_version, made.weight_versions.tolist()) == (0, [1, 1])


class Trainer(threading.Thread):
    """Rank 0: joins, connects, sends each tensor once it is told to, and leaves."""

    def __init__(self, tensors: list[torch.Tensor], world_size: int = 2, *, connects: bool = True) -> None:
        super().__init__(daemon=True)
        self._connects = connects
        self._listening, self._tensors = process_group.listen(), tensors
        port = self._listening.getsockname()[1]
        self.meeting = Rendezvous("weights", "127.0.0.1", port, "gloo", world_size, timeout_seconds=20)
        self.send = threading.Event()
        self.start()

    def run(self) -> None:
        group = process_group.join(self.meeting, 0, self._listening)
        if self._connects:
            process_group.connect(group, "cpu")
        self.send.wait(120)
        for tensor in self._tensors:
            process_group.broadcast(group, tensor)
        process_group.leave(group)


async def assert_serves(engine: TransformersEngine, model: Path, version: int, seed: int = 0) -> None:
    ids = prompt(40, seed)
    turn = await sample(engine, ids, max_new_tokens=6)
    assert turn.cached_tokens == 0
    assert turn.weight_versions.tolist() == [version] * len(turn.token_ids)
    assert_scored(turn, model, ids)


async def test_weights_load_from_a_checkpoint_an_object_store_and_a_trainer(engine, old, new):
    await assert_serves(engine, old, 0)
    await load(engine, Checkpoint(str(new)), 3, keep_cache=False)
    await assert_serves(engine, new, 3)

    await load(engine, stored(weights(old), Put), 4, keep_cache=False)
    await assert_serves(engine, old, 4)

    tensors = weights(new)
    source = BroadcastTensors("weights", tuple(spec(*item) for item in tensors.items()))
    with pytest.raises(WeightError, match="not in a process group weights"):
        engine.check(source)
    trainer = Trainer(list(tensors.values()))
    await engine.join(trainer.meeting, 1)
    engine.check(source)
    trainer.send.set()
    await load(engine, source, 5, keep_cache=False)
    await assert_serves(engine, new, 5)
    await engine.leave("weights")
    await asyncio.to_thread(trainer.join, 20)
    assert not trainer.is_alive()


async def test_turns_run_until_all_tensors_of_a_trainer_have_come_and_none_is_changed_if_it_dies(engine, old, new):
    tensors = weights(new)
    trainer = Trainer(list(tensors.values())[:5])
    await engine.join(trainer.meeting, 1)
    source = BroadcastTensors("weights", tuple(spec(*item) for item in tensors.items()))
    staging = asyncio.ensure_future(engine.stage(source))
    await assert_serves(engine, old, 0)
    assert not staging.done()
    trainer.send.set()
    with pytest.raises(RuntimeError, match="onnection"):  # it leaves after the fifth
        await staging
    await engine.leave("weights")
    await assert_serves(engine, old, 0, seed=1)


async def test_a_trainer_that_is_gone_before_it_connects_is_an_error_when_the_engine_joins(engine, old):
    trainer = Trainer([], connects=False)
    trainer.send.set()
    with pytest.raises(WeightError, match="ranks of weights did not connect"):
        await engine.join(trainer.meeting, 1)
    await engine.leave("weights")
    await assert_serves(engine, old, 0)


async def test_what_an_update_leaves_out_stays(engine, old, new, tmp_path):
    head, norm = "lm_head.weight", "model.norm.weight"
    pair = {name: weights(new)[name] for name in (head, norm)}
    buckets = [stored({name: tensor}, Put).buckets[0] for name, tensor in pair.items()]
    await load(engine, StoredTensors(tuple(buckets)), 1, keep_cache=False)
    mixed = transformers.AutoModelForCausalLM.from_pretrained(old)
    mixed.load_state_dict(pair, strict=False)
    mixed.save_pretrained(tmp_path)
    await assert_serves(engine, tmp_path, 1)


async def test_weights_in_several_places_are_loaded_in_their_order(engine, old, new, tmp_path):
    head, norm = "lm_head.weight", "model.norm.weight"
    layers = Layers(
        (Checkpoint(str(new)), stored({norm: weights(old)[norm]}, Put), stored({head: weights(old)[head]}, Put))
    )
    assert engine.check(layers) is None
    assert engine.check(layers.sources[1]) == {norm}
    await load(engine, layers, 3, keep_cache=False)
    mixed = transformers.AutoModelForCausalLM.from_pretrained(new)
    mixed.load_state_dict({name: weights(old)[name] for name in (head, norm)}, strict=False)
    mixed.save_pretrained(tmp_path)
    await assert_serves(engine, tmp_path, 3)


async def test_an_engine_takes_no_update_without_a_tensor(engine, old):
    with pytest.raises(WeightError, match="have no tensor"):
        engine.check(stored({}, Put))
    with pytest.raises(WeightError, match="have no tensor"):
        await load(engine, stored({}, Put), 1, keep_cache=False)
    await assert_serves(engine, old, 0)


async def test_a_tied_head_may_come_or_not(start, tmp_path):
    models = [
        tiny_model.make(tmp_path / str(seed), seed=seed, tie_word_embeddings=True, num_hidden_layers=1)
        for seed in range(2)
    ]
    engine = start(models[0])
    for version in range(1, 5):
        model = models[version % 2]
        tensors = weights(model)
        if version > 2:
            del tensors["lm_head.weight"]
        source = stored(tensors, Put)
        parameters.check_weights(str(models[0]), source)
        await load(engine, source, version, keep_cache=False)
        await assert_serves(engine, model, version)
    await load(engine, Checkpoint(str(models[1])), 5, keep_cache=False)
    await assert_serves(engine, models[1], 5)


async def test_other_weights_are_refused_and_the_old_ones_serve_on(engine, old, new, tmp_path):
    good = TensorSpec("lm_head.weight", "float32", (4096, 64))
    name = "model.layers.0.mlp.up_proj.weight"
    wide = tiny_model.make(tmp_path / "wide", intermediate_size=192)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes((new / "model.safetensors").read_bytes()[:1000])
    refused: dict[str, WeightSource] = {
        rf"{name} is \[7, 64\] in the new weights and \[128, 64\] in the model": StoredTensors(
            (Bucket((good, TensorSpec(name, "float32", (7, 64))), Put(np.empty(0, np.uint8))),)
        ),
        "a tensor nobody.weight, which the model has not": StoredTensors(
            (Bucket((good, TensorSpec("nobody.weight", "float32", (7, 64))), Put(np.empty(0, np.uint8))),)
        ),
        r"down_proj.weight is \[64, 192\] in the new weights": Checkpoint(str(wide)),
        "There is no folder /nowhere": Checkpoint("/nowhere"),
        "holds no safetensors": Checkpoint(str(tmp_path / "empty")),
        "cannot be read": Checkpoint(str(tmp_path / "cut")),
    }
    for words, source in refused.items():
        with pytest.raises(WeightError, match=words):
            engine.check(source)
        with pytest.raises(WeightError, match=words):
            parameters.check_weights(str(old), source)
        with pytest.raises(WeightError, match=words):
            await load(engine, source, 1, keep_cache=False)
    await assert_serves(engine, old, 0)


def test_shapes_are_read_from_the_headers_of_one_file_or_many(old, tmp_path):
    expected = {name: tuple(tensor.shape) for name, tensor in weights(old).items()}
    assert parameters.shapes(old) == expected
    plain(old).save_pretrained(tmp_path / "sharded", max_shard_size="300KB")
    assert len(parameters.files(tmp_path / "sharded")) > 2
    assert parameters.shapes(tmp_path / "sharded") == expected
    assert parameters.shapes(tmp_path) is None
    assert parameters.located(str(old)) == old
    assert parameters.located("nobody/has-this-model") is None


def test_a_process_group_is_what_torch_itself_would_make():
    """SGLang makes its side by the function that `init_process_group` uses."""
    from torch.distributed import distributed_c10d

    trainer = Trainer([torch.arange(5.0)], world_size=3, connects=False)
    trainer.send.set()
    meeting, got = trainer.meeting, []

    def as_here() -> None:
        group = process_group.join(meeting, 1)
        tensor = torch.zeros(5)
        process_group.broadcast(group, tensor)
        got.append(tensor.tolist())
        process_group.leave(group)

    def as_there() -> None:
        address = f"tcp://{meeting.address}:{meeting.port}"
        store, rank, size = next(distributed.rendezvous(address, 2, meeting.world_size))
        group, _ = distributed_c10d._new_process_group_helper(
            size,
            rank,
            [],
            distributed.Backend("gloo"),
            distributed.PrefixStore(meeting.name, store),
            group_name=meeting.name,
            timeout=timedelta(seconds=20),
        )
        distributed_c10d._world.pg_group_ranks[group] = {number: number for number in range(size)}
        tensor = torch.zeros(5)
        distributed.broadcast(tensor, src=0, group=group)
        got.append(tensor.tolist())
        distributed.destroy_process_group(group)

    receivers = [threading.Thread(target=target, daemon=True) for target in (as_here, as_there)]
    for receiver in receivers:
        receiver.start()
    for thread in [*receivers, trainer]:
        thread.join(120)
    assert got == [[0.0, 1.0, 2.0, 3.0, 4.0]] * 2


async def test_a_group_that_does_not_come_about_is_an_error(engine):
    with process_group.listen() as closed_before_anyone_comes:
        port = closed_before_anyone_comes.getsockname()[1]
    late = Rendezvous("weights", "127.0.0.1", port, "gloo", 2, timeout_seconds=0.5)
    with pytest.raises(WeightError, match=rf"group weights could not be joined at 127.0.0.1:{port} as rank 1"):
        await engine.join(late, 1)


# Life ----------------------------------------------------------------------------------------------------------------


def test_bad_settings_are_refused_by_name(start, old, tmp_path):
    with pytest.raises(ConfigError, match=r"policy.engine_arguments.*'no_such_argument'"):
        start(old, no_such_argument=3)
    with pytest.raises(ConfigError, match=r"policy.model: .*cannot be loaded"):
        start(tmp_path)


def test_a_model_that_mixes_what_shares_a_pass_is_refused(start, tmp_path):
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=1, max_position_embeddings=2048
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot serve a MambaForCausalLM"):
        start(tmp_path)


async def test_an_error_in_the_model_fails_the_turns_in_flight_only(engine, old, monkeypatch):
    def broken(*_: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    await engine.freeze()
    turns = [sample(engine, prompt(5, seed=number), max_new_tokens=5) for number in range(3)]
    await asyncio.sleep(0.02)
    with monkeypatch.context() as patched:
        patched.setattr(engine._batch._model, "forward", broken)
        await engine.thaw()
        answers = await asyncio.gather(*turns, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["none left"] * 3
    engine.check_health()
    await assert_serves(engine, old, 0)


@pytest.mark.parametrize("broken", ["forward", "sample"])
async def test_a_turn_that_the_model_fails_on_fails_alone_and_the_others_go_on_exactly(
    engine, old, monkeypatch, broken
):
    """Whether it is fed or sampled: the others' tokens are still those of a plain forward pass."""
    forward, sampling = engine._batch._model.forward, batch.sample

    def fails_on_seven(parts: Any) -> torch.Tensor:
        if any(context.since(0)[0] == 7 for context, _ in parts):
            raise RuntimeError("device-side assert")
        return forward(parts)

    def fails_when_cold(logits: torch.Tensor, how: list[Sampling]) -> Any:
        if any(one.temperature == 0.125 for one in how):
            raise RuntimeError("device-side assert")
        return sampling(logits, how)

    if broken == "forward":
        monkeypatch.setattr(engine._batch._model, "forward", fails_on_seven)
    else:
        monkeypatch.setattr(batch, "sample", fails_when_cold)
    prompts = [prompt(30 + 200 * number, seed=number) for number in range(4)]
    others = [sample(engine, ids, max_new_tokens=40, ignore_eos=True) for ids in prompts]
    await until(lambda: sampled(engine) > 8)
    culprit = sample(engine, np.array([7, 8, 9], dtype=np.int32), temperature=0.125)
    with pytest.raises(RuntimeError, match="device-side assert"):
        await culprit
    for ids, turn in zip(prompts, await asyncio.gather(*others), strict=True):
        assert len(turn.token_ids) == 40
        assert_scored(turn, old, ids)
    engine.check_health()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_whose_device_can_do_nothing_any_more_ends(engine, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(engine._batch._model, "forward", broken)
    monkeypatch.setattr(engine._batch._model, "check_device", broken)
    with pytest.raises(RuntimeError, match="ended"):
        await sample(engine, prompt(5))
    await until(lambda: not engine._thread.is_alive())
    with pytest.raises(RuntimeError, match="ended"):
        engine.check_health()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_engine_says_why(engine, monkeypatch):
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    engine.check_health()
    await engine.freeze()
    turn = sample(engine, prompt(5))
    await asyncio.sleep(0.02)
    monkeypatch.setattr(engine._batch, "step", broken)
    with pytest.raises(RuntimeError, match="ended"):
        await asyncio.gather(engine.thaw(), turn)
    await until(lambda: not engine._thread.is_alive())
    for ask in (engine.check_health, engine.interrupt):
        with pytest.raises(RuntimeError, match="ended") as caught:
            ask()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(RuntimeError, match="ended"):
        await sample(engine, prompt(5))


async def test_closing_ends_the_thread_and_what_runs(start, old):
    engine = start(old)
    turn = sample(engine, prompt(5), max_new_tokens=60_000, ignore_eos=True)
    await until(lambda: sampled(engine) > 0)
    engine.close()
    assert not engine._thread.is_alive()
    with pytest.raises(RuntimeError, match="ended"):
        await turn
