"""Public functions that need no service, called with arguments of every kind; the client's are in test_client.py."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service import RolloutConfig, TrajectoryBatch
from rollout_service.adapters import checks, trl, verl
from rollout_service.adapters import torch as torch_adapter
from rollout_service.cli import main
from rollout_service.config import field_names
from rollout_service.record import storage
from rollout_service.record.trajectory import Provenance
from rollout_service.tau2 import tasks
from tests.support import arguments
from tests.support.arguments import nothing, number, one_of, or_none, truth, whole
from tests.support.trajectories import make_trajectory

BATCH = TrajectoryBatch([make_trajectory(provenance=Provenance(tokenizer_fingerprint="none"))])
"""Hypothesis also tries words that stand in the tests, so this fingerprint, which fits, may come."""
TOKEN_ID = whole(0, 2**31 - 1)
LENGTH = or_none(whole(max(len(segment.token_ids) for trajectory in BATCH for segment in trajectory.segments)))
ONE = or_none(whole(1, 1))
UNSCORED = one_of("refuse", "mask")


def no_trajectory(value: Any) -> bool:
    """Of these values only an empty collection holds nothing but trajectories."""
    return isinstance(value, (list, dict)) and not value


def collated(**arguments: Any) -> Any:
    return torch_adapter.collate_padded(**{"items": BATCH, "pad_token_id": 0} | arguments)


def packed(**arguments: Any) -> Any:
    return torch_adapter.collate_packed(**{"items": BATCH} | arguments)


def proto(**arguments: Any) -> Any:
    own = {"trajectories": BATCH, "pad_token_id": 0, "prompt_length": 8, "response_length": 64}
    return verl.data_proto(**own | arguments)


def retail_ids(value: Any) -> bool:
    """Ids of tasks; a whole number stands for its text."""
    known = tasks.splits("retail")["train"]
    return isinstance(value, list) and bool(value) and all(type(i) in (int, str) and str(i) in known for i in value)


FINGERPRINT = or_none(one_of(BATCH[0].provenance.tokenizer_fingerprint))

TAKES: dict[str, tuple[Callable[..., Any], arguments.Fits]] = {
    "TrajectoryBatch(trajectories)": (TrajectoryBatch, no_trajectory),
    "TrajectoryBatch.filter(predicate)": (BATCH.filter, nothing),
    "TrajectoryBatch.load(path)": (TrajectoryBatch.load, nothing),
    "TrajectoryBatch.save(path)": (BATCH.save, nothing),
    "TrajectoryBatch.advantages(scale)": (BATCH.advantages, truth),
    "TrajectoryBatch.advantages(epsilon)": (BATCH.advantages, number(1e-12, 1.0)),
    "TrajectoryBatch.padded(pad_token_id)": (BATCH.padded, TOKEN_ID),
    "TrajectoryBatch.padded(max_length)": (BATCH.padded, LENGTH),
    "TrajectoryBatch.packed(max_length)": (BATCH.packed, LENGTH),
    "storage.read(path)": (storage.read, nothing),
    "storage.iterate(path)": (storage.iterate, nothing),
    "torch.collate_padded(pad_token_id)": (collated, TOKEN_ID),
    **{
        f"torch.collate_{name}({argument})": (collate, values)
        for name, collate in (("padded", collated), ("packed", packed))
        for argument, values in {
            "items": no_trajectory,
            "max_length": LENGTH,
            "group_size": ONE,
            "scale": truth,
            "unscored": UNSCORED,
            "tokenizer_fingerprint": FINGERPRINT,
        }.items()
    },
    "verl.agent_loop_output(trajectory)": (verl.agent_loop_output, nothing),
    "verl.data_proto(trajectories)": (proto, no_trajectory),
    "verl.data_proto(pad_token_id)": (proto, TOKEN_ID),
    "verl.data_proto(prompt_length)": (proto, whole(BATCH[0].segments[0].prompt_length, 2**24)),
    "verl.data_proto(response_length)": (proto, whole(BATCH[0].segments[0].response_length, 2**24)),
    "verl.data_proto(group_size)": (proto, ONE),
    "verl.data_proto(unscored)": (proto, UNSCORED),
    "trl.prompts(domain)": (lambda domain: trl.prompts(domain), one_of("retail")),
    "trl.prompts(split)": (lambda split: trl.prompts("retail", split), one_of("train")),
    "trl.prompts(ids)": (lambda ids: trl.prompts("retail", "train", ids), or_none(retail_ids)),
    "trl.rollout_func(client)": (trl.rollout_func, nothing),
    "trl.tau2_reward(rollout_reward)": (lambda rollout_reward: trl.tau2_reward([1, 2, 3], rollout_reward), nothing),
    "checks.check_groups(group_size)": (lambda group_size: checks.check_groups(BATCH, group_size), ONE),
    "checks.check_rewards(unscored)": (lambda unscored: checks.check_rewards(BATCH, unscored), UNSCORED),
    "checks.tokenizer_fingerprint(tokenizer)": (checks.tokenizer_fingerprint, nothing),
    "RolloutConfig.load(path)": (RolloutConfig.load, or_none(nothing)),
    "RolloutConfig.load(overrides)": (lambda overrides: RolloutConfig.load(None, overrides, {}), or_none(one_of({}))),
    "RolloutConfig.with_overrides(overrides)": (RolloutConfig().with_overrides, or_none(one_of({}))),
}
"""`function(argument)`: how it is called with that argument alone, and which of `arguments.VALUES` fit."""

SAYS = {"items": "", "overrides": ""}
"""How the errors call an argument that holds others: by the name of what is wrong in it."""


@pytest.mark.parametrize("what", TAKES)
def test_an_argument_is_taken_as_it_is_or_refused_by_its_name(what: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, fits = TAKES[what]
    name = what.partition("(")[2].rstrip(")")
    arguments.check(lambda value: function(**{name: value}), name, fits, SAYS.get(name))


def _same(given: Any, taken: Any) -> bool:
    """Whether a setting that was taken is what was given: 1 may become 1.0, and a number may become its text or come
    from it, but nothing else changes."""
    if isinstance(given, bool) or isinstance(taken, bool):
        return given is taken
    if isinstance(taken, dict) and isinstance(given, str):  # a mix of domains
        return given == ",".join(f"{name}={weight:g}" for name, weight in taken.items())
    if isinstance(taken, dict) and isinstance(given, dict):
        return given.keys() == taken.keys() and all(_same(given[key], taken[key]) for key in given)
    if isinstance(taken, (list, tuple)) and isinstance(given, (list, tuple)):
        return len(given) == len(taken) and all(map(_same, given, taken))
    if isinstance(taken, str) and not isinstance(given, bytes):
        return str(given) == taken
    if isinstance(given, str) and isinstance(taken, (int, float)):
        return float(given) == taken
    return bool(given == taken)


@settings(max_examples=600, deadline=None, database=None)
@given(st.sampled_from(field_names()), arguments.VALUES)
def test_a_setting_is_taken_as_it_is_or_refused_by_the_name_of_its_section_at_least(field: str, value: Any):
    what = f"{field}={value!r}"
    loaded: list[RolloutConfig] = []
    refused = arguments.refusal(lambda: loaded.append(RolloutConfig.load(None, {field: value}, {})), what)
    if refused is not None:
        section, _, _ = field.rpartition(".")
        assert section in str(refused), f"{what}: {refused}"
        return
    taken: Any = loaded[0]
    for name in field.split("."):
        taken = getattr(taken, name)
    no_limit = field == "policy.sampling.top_k" and value in (0, "0") and taken == -1  # SGLang's word for it
    assert no_limit or _same(value, taken), f"{what} was taken as {taken!r}"


COMMANDS = {
    "tasks --domain": ["tasks", "--domain"],
    "tasks --split": ["tasks", "--domain", "retail", "--split"],
    "verify --check": ["verify", "missing.jsonl", "--check"],
    "verify --show": ["verify", "missing.jsonl", "--show"],
    "prepare-data --domain": ["prepare-data", "--output", "p.jsonl", "--domain"],
    "prepare-data --split": ["prepare-data", "--output", "p.jsonl", "--domain", "mock", "--split"],
    "prepare-data --output": ["prepare-data", "--domain", "mock", "--output"],
    "size --episodes": ["size", "--model", ".", "--gpu-memory", "80", "--context", "100", "--episodes"],
    "collect --n": ["collect", "--n"],
    "collect --group-size": ["collect", "--group-size"],
    "collect --config": ["collect", "--config"],
    "collect --set": ["collect", "--set"],
    "collect --output": ["collect", "--output"],
    "evaluate --trials": ["evaluate", "--trials"],
    "evaluate --max-turns": ["evaluate", "--max-turns"],
    "report --k": ["report", "missing.jsonl", "--k"],
    "report --against": ["report", "missing.jsonl", "--against"],
    "doctor --set": ["doctor", "--set"],
    "doctor --config": ["doctor", "--config"],
}
WRONG_TEXT = st.sampled_from(["0", "-1", "1.5", "nan", "x", " ", "=", "a.b=1", "limits.max_turns=no", "\x00"])


@settings(max_examples=120, deadline=None, database=None)
@given(st.sampled_from(sorted(COMMANDS)), WRONG_TEXT)
def test_a_wrong_option_ends_the_command_with_2_and_a_paragraph(command: str, value: str):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        main([*COMMANDS[command], value])
    assert ended.value.code == 2, f"{command} {value!r}: {said.getvalue()}"
    assert "Traceback" not in said.getvalue()
    assert "Error" in said.getvalue()
