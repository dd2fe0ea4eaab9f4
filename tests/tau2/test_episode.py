"""Whole episodes with the official τ² parts: what they score, how they end, what is recorded."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rollout_service.audit.verify import verify
from rollout_service.chat.parsed_turn import MALFORMED_ARGUMENT
from rollout_service.errors import EpisodeFault, FaultKind, Tau2Error
from rollout_service.policy.base import Generation
from rollout_service.record.trajectory import Outcome, Trajectory
from rollout_service.tau2 import compat, environment, evaluation, messages, tasks
from rollout_service.tau2 import domain as shared_domain
from rollout_service.tau2.deadline import Deadline
from tests.support import episodes

TOKENIZERS = Path(__file__).parents[2].parent / "shared" / "tokenizers"


def violations(trajectory: Trajectory, tokenizer: str | None = None) -> list[str]:
    return [str(v) for _, found in verify([trajectory], tokenizer=tokenizer) for v in found]


def calls(trajectory: Trajectory, role: str = "assistant") -> list[dict]:
    return [call for m in trajectory.messages if m["role"] == role for call in m.get("tool_calls") or []]


@pytest.mark.parametrize("domain", ["mock", "retail", "airline", "telecom", "telecom-workflow"])
def test_the_scripted_pair_completes_a_task_with_reward_1_and_a_clean_audit(domain):
    trajectory = episodes.run(domain, 1)
    assert (trajectory.outcome, trajectory.termination_reason, trajectory.reward) == ("completed", "user_stop", 1.0)
    assert violations(trajectory) == []
    assert len(trajectory.segments) == 1
    assert trajectory.policy_token_count == sum(turn.end - turn.start for turn in trajectory.turns)
    made = trajectory.provenance
    assert made.tau2_distribution == compat.DISTRIBUTION
    assert (made.limits, made.user_arguments) == ({"max_steps": 200, "max_errors": 10, "max_turns": 30}, {})
    assert made.domain_hash == shared_domain.get(domain).content_hash(False)
    begun = datetime.datetime.fromisoformat(trajectory.started)
    assert abs(datetime.datetime.now(datetime.UTC) - begun) < datetime.timedelta(hours=1)


def test_the_user_performs_its_own_gold_actions_in_a_dual_control_domain():
    trajectory = episodes.run("telecom", 1)
    gold = tasks.get(trajectory.task).evaluation_criteria.actions
    assert [c["name"] for c in calls(trajectory, "user")] == [a.name for a in gold if a.requestor == "user"]
    assert all(c["requestor"] == "user" for c in calls(trajectory, "user"))


def test_one_seed_gives_the_same_tokens_masks_and_messages():
    script = {"policy__script": {"chatter": 0.5, "malformed_call": 0.5, "wrong_argument": 0.3}}
    script["user__script"] = {"chatter": 0.5}
    first, again, other = (episodes.run("retail", 2, seed, **script) for seed in (7, 7, 8))
    conversation = [messages.from_record(m) for m in first.messages]
    assert conversation == [messages.from_record(m) for m in again.messages], "τ²'s equality leaves timestamps out"
    for a, b in zip(first.segments, again.segments, strict=True):
        for name in ("token_ids", "loss_mask", "logprobs", "weight_versions"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
    assert conversation != [messages.from_record(m) for m in other.messages]


def test_each_prompt_is_what_the_segment_says_was_sent():
    config = episodes.settings()
    policy = episodes.LocalPolicy(config)
    trajectory = episodes.runner(config, policy).run(episodes.request(episodes.task("retail")))
    final = trajectory.segments[0].token_ids.tolist()
    assert policy.prompts == [final[: turn.start] for turn in trajectory.turns]


@pytest.mark.parametrize("domain", ["retail", "airline", "telecom"])
def test_wrong_arguments_score_what_the_official_evaluator_says_of_the_same_messages(domain):
    rewards = []
    for position in (0, 13, 26, 39):
        trajectory = episodes.run(domain, position, policy__script={"wrong_argument": 1.0})
        conversation = [messages.from_record(m) for m in trajectory.messages]
        official = evaluation.evaluate(conversation, tasks.get(trajectory.task), domain, trajectory.termination_reason)
        assert trajectory.reward == official.reward
        assert trajectory.reward_info == official.model_dump(mode="json")
        rewards.append(trajectory.reward)
    assert 0.0 in rewards


def test_a_malformed_call_is_answered_by_the_environment_counted_and_not_the_end():
    trajectory = episodes.run("retail", 1, policy__script={"malformed_call": 1.0})
    assert trajectory.reward == 1.0
    broken = [c for c in calls(trajectory) if MALFORMED_ARGUMENT in c["arguments"]]
    assert len(broken) == trajectory.malformed_call_count > 0
    gold = tasks.get(trajectory.task).evaluation_criteria.actions
    assert [c["name"] for c in broken] == [a.name for a in gold], "the call goes to the name that the policy wrote"
    errors = {m["id"] for m in trajectory.messages if m["role"] == "tool" and m["error"]}
    assert errors == {c["id"] for c in broken}
    assert violations(trajectory) == []


def test_several_calls_in_one_turn_are_answered_together():
    trajectory = episodes.run("retail", 1, policy__script={"calls_per_turn": 3})
    sizes = [len(m["tool_calls"]) for m in trajectory.messages if m["role"] == "assistant" and m.get("tool_calls")]
    assert max(sizes) > 1
    assert trajectory.reward == 1.0
    assert violations(trajectory) == []


def test_a_policy_that_stops_early_is_completed_with_reward_0():
    trajectory = episodes.run("retail", 1, policy__script={"early_stop": 1.0})
    assert (trajectory.outcome, trajectory.reward) == ("completed", 0.0)
    assert calls(trajectory) == []


def test_control_tokens_in_what_the_user_says_stay_text():
    noisy = [episodes.run("mock", 0, seed, user__script={"chatter": 1.0}) for seed in range(12)]
    hostile = [t for t in noisy if any("<|im_end|>" in (m.get("content") or "") for m in t.messages)]
    assert hostile, "no draw had the noise that this is about"
    end_of_turn = episodes.codec().end_of_turn_id
    for trajectory in hostile:
        turns_spoken = 1 + len(trajectory.messages) - 1  # the system prompt, and every message but the user's last
        assert np.count_nonzero(trajectory.segments[0].token_ids == end_of_turn) == turns_spoken
        assert violations(trajectory) == []


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"limits__max_turns": 2}, "max_turns"),
        ({"limits__max_steps": 4}, "max_steps"),
        ({"limits__max_errors": 1, "policy__script": {"malformed_call": 1.0}}, "too_many_errors"),
        ({"policy__context_length": 7000}, "context_length"),
        ({"policy__response_length": 200}, "response_length"),
        ({"policy__response_length": 9999, "policy__context_length": 7000}, "context_length"),
    ],
)
def test_each_limit_truncates_with_its_own_reason_and_the_official_reward_of_0(limits, reason):
    trajectory = episodes.run("retail", 1, **limits)
    assert (trajectory.outcome, trajectory.termination_reason, trajectory.reward) == ("truncated", reason, 0.0)
    assert trajectory.fault is None
    assert violations(trajectory) == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"limits__max_steps": 1}, "max_steps"),
        ({"policy__context_length": 300}, "context_length"),
        ({"policy__context_length": 300, "agent": "solo"}, "context_length"),
    ],
)
def test_a_limit_that_ends_an_episode_before_the_policy_spoke_leaves_it_without_a_reward(settings, reason):
    trajectory = episodes.run("mock", 1, **settings)
    assert (trajectory.outcome, trajectory.termination_reason) == ("truncated", reason)
    assert (trajectory.reward, trajectory.reward_info, trajectory.fault) == (None, None, None)
    assert (trajectory.turns, trajectory.is_scored) == ([], False)
    assert violations(trajectory) == []


def test_a_turn_cut_by_length_is_closed_with_context_and_the_episode_goes_on():
    trajectory = episodes.run("retail", 1, policy__sampling={"max_new_tokens": 12}, limits__max_turns=4)
    segment = trajectory.segments[0]
    cut = segment.turns[0]
    assert cut.finish_reason == "length"
    assert segment.token_ids[cut.end] == episodes.codec().end_of_turn_id
    assert segment.loss_mask[cut.end] == 0
    assert trajectory.malformed_call_count > 0
    assert violations(trajectory) == []


def test_the_wall_time_limit_truncates_without_a_reward():
    slow = {"latency": {"mean": 0.4}}
    trajectory = episodes.run("retail", 1, limits__wall_seconds=0.6, policy__script=slow)
    assert (trajectory.outcome, trajectory.termination_reason, trajectory.reward) == ("truncated", "wall_time", None)


def test_the_wall_time_limit_also_holds_while_the_scripted_user_waits():
    slow = {"latency": {"mean": 300.0}}
    start = time.monotonic()
    trajectory = episodes.run("mock", 0, limits__wall_seconds=0.5, user__script=slow)
    assert trajectory.termination_reason == "wall_time"
    assert time.monotonic() - start < 200


class FixedTurns:
    """A policy whose turns are all the same."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = np.asarray(ids, dtype=np.int32)

    async def generate(self, *_) -> Generation:
        n = len(self.ids)
        return Generation(self.ids, np.full(n, -0.5, np.float32), np.zeros(n, np.int32), "stop")


def test_an_empty_turn_is_the_policy_s_error_with_the_official_reward_of_0():
    policy = FixedTurns([episodes.codec().end_of_turn_id])
    trajectory = episodes.runner(episodes.settings(), policy).run(episodes.request(episodes.task("retail")))
    assert (trajectory.outcome, trajectory.termination_reason, trajectory.reward) == ("agent_error", "agent_error", 0.0)
    assert trajectory.fault is None
    assert trajectory.turns[0].message_index is None
    assert violations(trajectory) == []


class FailingPolicy(episodes.LocalPolicy):
    """Fails at its third turn, in the way it is told."""

    def __init__(self, config, failure) -> None:
        super().__init__(config)
        self.failure = failure

    async def generate(self, input_ids, sampling, session_id, info) -> Generation:
        generation = await super().generate(input_ids, sampling, session_id, info)
        return await self.failure(generation) if info.turn == 2 else generation


async def _raises(_):
    raise ConnectionError("replica died; key sk-abcdefghijklmnop1234")


async def _short_logprobs(generation):
    generation.logprobs = generation.logprobs[:-1]
    return generation


async def _hangs(_):
    await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("failure", "message"),
    [(_raises, "replica died"), (_short_logprobs, "log-probs"), (_hangs, "no answer in 1 s")],
    ids=["raises", "unaligned log-probs", "hangs"],
)
def test_a_failing_policy_is_a_fault_without_reward_and_keeps_the_turns_before(failure, message):
    config = episodes.settings(policy__timeout_seconds=1.0)
    trajectory = episodes.runner(config, FailingPolicy(config, failure)).run(
        episodes.request(episodes.task("retail", 1))
    )
    assert (trajectory.outcome, trajectory.reward) == ("aborted", None)
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.POLICY, True)
    assert message in trajectory.fault.message
    assert "_generate" in trajectory.fault.traceback or "record" in trajectory.fault.traceback
    assert "abcdefghijklmnop1234" not in json.dumps(trajectory.to_dict())
    assert len(trajectory.turns) == 2
    assert violations(trajectory) == []


def test_a_fault_of_the_environment_is_told_from_one_of_the_policy(monkeypatch):
    def broken(self, *args):
        raise RuntimeError("database lost")

    monkeypatch.setattr(compat.Environment, "get_response", broken)
    trajectory = episodes.run("retail", 1)
    assert (trajectory.outcome, trajectory.reward, trajectory.fault.kind) == ("aborted", None, FaultKind.ENVIRONMENT)


def test_a_fault_of_the_evaluator_leaves_no_reward(monkeypatch):
    def broken(**kwargs):
        raise RuntimeError("judge unreachable")

    monkeypatch.setattr(compat, "evaluate_simulation", broken)
    trajectory = episodes.run("retail", 1)
    assert (trajectory.outcome, trajectory.reward, trajectory.fault.kind) == ("aborted", None, FaultKind.EVALUATOR)


def test_a_cancelled_episode_ends_soon_as_aborted_without_a_fault():
    config = episodes.settings(policy__script={"latency": {"mean": 600.0}})
    clock = Deadline(6000)
    threading.Timer(0.3, clock.cancelled.set).start()
    start = time.monotonic()
    trajectory = episodes.runner(config).run(episodes.request(episodes.task("mock")), clock)
    assert time.monotonic() - start < 300
    assert (trajectory.outcome, trajectory.termination_reason, trajectory.fault) == ("aborted", "cancelled", None)


@pytest.mark.parametrize("domain", ["mock", "telecom"])
def test_the_solo_agent_works_alone_to_reward_1(domain):
    position = 1 if domain == "mock" else 0
    trajectory = episodes.run(domain, position, agent="solo")
    assert (trajectory.outcome, trajectory.termination_reason, trajectory.reward) == ("completed", "agent_stop", 1.0)
    assert {m["role"] for m in trajectory.messages} == {"assistant", "tool"}
    assert trajectory.provenance.user == "dummy"
    assert violations(trajectory) == []


def test_text_from_the_solo_agent_is_its_error():
    text = FixedTurns(episodes.codec().encode_turn("Hello?"))
    config = episodes.settings(agent="solo")
    trajectory = episodes.runner(config, text).run(episodes.request(episodes.task("mock", 1)))
    assert (trajectory.outcome, trajectory.reward) == (Outcome.AGENT_ERROR, 0.0)
    assert violations(trajectory) == []


def test_a_malformed_call_of_the_stop_tool_does_not_end_a_solo_episode():
    whole = episodes.codec().encode_turn("", [("done", {})])
    broken = episodes.codec().encode_written(episodes.codec().decode(whole[:-1]).replace("}}", "}"))
    config = episodes.settings(agent="solo", limits__max_turns=3)
    policy = FixedTurns([*broken, whole[-1]])
    trajectory = episodes.runner(config, policy).run(episodes.request(episodes.task("mock", 1)))
    assert (trajectory.termination_reason, trajectory.malformed_call_count) == ("max_turns", 3)
    assert violations(trajectory) == []


@pytest.mark.parametrize("first", [True, False], ids=["first turn", "later turn"])
def test_the_stop_word_beside_a_call_of_the_solo_agent_is_text_and_the_call_is_answered(first):
    both = f"###STOP###\n{episodes.written('get_users')}"
    turns = [both, episodes.written("done")] if first else [episodes.written("get_users"), both, "###STOP###"]
    runner = episodes.runner(episodes.settings(agent="solo"), episodes.WrittenTurns(*turns))
    trajectory = runner.run(episodes.request(episodes.task("mock", 0)))
    assert trajectory.fault is None
    assert (trajectory.outcome, trajectory.termination_reason, trajectory.reward) == ("completed", "agent_stop", 0.0)
    assert [m["role"] for m in trajectory.messages] == ["assistant", "tool"] * (len(turns) - 1) + ["assistant"]
    assert violations(trajectory) == []


def test_a_number_too_long_to_be_written_out_is_an_error_that_the_policy_sees_and_the_episode_is_scored():
    call = episodes.written(
        "update_reservation_baggages",
        reservation_id="VAAOXJ",
        total_baggages=3,
        nonfree_baggages=int("9" * 4300),
        payment_id="credit_card_1052991",
    )
    runner = episodes.runner(episodes.settings(), episodes.WrittenTurns(call, "That failed."))
    trajectory = runner.run(episodes.request(episodes.task("airline", 1)))
    assert (trajectory.outcome, trajectory.fault) == ("completed", None)
    [said] = [m for m in trajectory.messages if m["role"] == "tool"]
    assert (said["content"], said["error"]) == ("Error: Number is too large", True)
    assert trajectory.reward is not None
    assert violations(trajectory) == []


@pytest.mark.parametrize("mode", ["official", "fast", "check"])
def test_a_calculation_without_end_is_an_error_that_the_policy_sees_and_the_episode_is_scored(mode):
    policy = episodes.WrittenTurns(episodes.written("calculate", expression="9**9**7"), "Too hard.")
    runner = episodes.runner(episodes.settings(evaluation__mode=mode), policy)
    trajectory = runner.run(episodes.request(episodes.task("retail", 1)))
    assert (trajectory.outcome, trajectory.fault, trajectory.reward) == ("completed", None, 0.0)
    assert [m["content"] for m in trajectory.messages if m["role"] == "tool"] == [
        "Error: Expression is too large to evaluate"
    ]
    assert violations(trajectory) == []


def test_a_bill_that_refueling_makes_replays_to_itself():
    call = episodes.written("refuel_data", customer_id="C1002", line_id="L1004", gb_amount=1.0)
    found = []
    for mode in ("fast", "official", "check"):
        runner = episodes.runner(episodes.settings(evaluation__mode=mode), episodes.WrittenTurns(call, "Done."))
        trajectory = runner.run(episodes.request(episodes.task("telecom", 5)))
        assert (trajectory.outcome, trajectory.fault) == ("completed", None)
        assert trajectory.reward_info["db_check"]["db_match"] is False
        assert violations(trajectory) == []
        found.append((trajectory.provenance.evaluator, trajectory.reward_info))
    assert [evaluator for evaluator, _ in found] == ["fast", "official", "official"]
    assert found[0][1] == found[1][1] == found[2][1]


def test_the_solo_agent_is_refused_where_the_domain_has_no_solo_mode():
    with pytest.raises(Tau2Error, match="retail"):
        episodes.run("retail", 0, agent="solo")


def test_the_ground_truth_agent_has_the_gold_actions_in_its_prompt():
    config = episodes.settings(agent="gt")
    policy = episodes.LocalPolicy(config)
    trajectory = episodes.runner(config, policy).run(episodes.request(episodes.task("retail", 1)))
    assert trajectory.reward == 1.0
    prompt = episodes.codec().decode(policy.prompts[0])
    assert "<resolution_steps>" in prompt
    assert tasks.get(trajectory.task).evaluation_criteria.actions[0].name in prompt
    assert violations(trajectory) == []


def test_the_prompt_is_the_official_agent_s():
    config = episodes.settings()
    policy = episodes.LocalPolicy(config)
    episodes.runner(config, policy).run(episodes.request(episodes.task("retail", 1)))
    world = environment.make("retail")
    official = compat.LLMAgent(tools=world.get_tools(), domain_policy=world.get_policy(), llm="x")
    prompt = episodes.codec().decode(policy.prompts[0])
    assert official.system_prompt in prompt
    assert all(tool.name in prompt for tool in world.get_tools())


@pytest.mark.parametrize("kind", ["env", "communicate", "action", "all"])
def test_every_evaluation_type_is_the_official_one(kind):
    trajectory = episodes.run("mock", 0, evaluation__type=kind)
    task = tasks.get(trajectory.task)
    conversation = [messages.from_record(m) for m in trajectory.messages]
    official = evaluation.evaluate(conversation, task, "mock", "user_stop", evaluation_type=kind)
    assert trajectory.reward_info == official.model_dump(mode="json")
    assert violations(trajectory) == []


@pytest.mark.parametrize(
    "name", ["Qwen2.5-7B-Instruct", "Qwen3-0.6B", "Qwen3-4B-Instruct-2507", "Qwen3-4B-Thinking-2507"]
)
@pytest.mark.parametrize("history", ["append", "template"])
@pytest.mark.parametrize("domain", ["retail", "telecom"])
def test_episodes_with_a_real_tokenizer_are_what_its_own_template_gives(name, history, domain):
    folder = str(TOKENIZERS / name)
    if not (TOKENIZERS / name).is_dir():
        pytest.skip(f"the tokenizer {name} is not beside this checkout")
    overrides = {"policy__tokenizer": folder, "policy__history": history, "policy__script": {"chatter": 0.5}}
    trajectory = episodes.run(domain, 1, **overrides)
    assert trajectory.reward == 1.0
    assert violations(trajectory) == []
    codec = episodes.codec(folder)
    if codec.rewrites_history and history == "template":
        assert len(trajectory.segments) > 1
    else:
        assert len(trajectory.segments) == 1
    if history == "template" or not codec.rewrites_history:
        world = environment.make(domain)
        official = compat.LLMAgent(tools=world.get_tools(), domain_policy=world.get_policy(), llm="x")
        for segment in trajectory.segments:
            for turn in segment.turns:
                rendered = _rendered_by_the_template(codec, trajectory, turn, official)
                assert rendered == segment.token_ids[: turn.start].tolist()


def _rendered_by_the_template(codec, trajectory: Trajectory, turn, official: compat.LLMAgent) -> list[int]:
    """The tokenizer's own rendering of everything before the turn's message, from the recorded messages."""
    history = [{"role": "system", "content": official.system_prompt}]
    spoken = {t.message_index: t for t in trajectory.turns}
    for index, record in enumerate(trajectory.messages[: turn.message_index]):
        if record["role"] == "user" and record.get("tool_calls"):
            continue
        if record["role"] == "tool" and record["requestor"] == "user":
            continue
        for chat in messages.to_chat(messages.from_record(record)):
            if index in spoken and codec.supports_reasoning:
                chat["reasoning_content"] = "The next step of the plan."
            history.append(chat)
    ids = codec._tokenizer.apply_chat_template(
        history, tools=[t.openai_schema for t in official.tools], add_generation_prompt=True, return_dict=False
    )
    return list(ids)


def test_a_fault_keeps_its_kind_when_it_crosses_a_process():
    import pickle

    fault = EpisodeFault(FaultKind.POLICY, "gone", error="RayActorError", retryable=False)
    assert pickle.loads(pickle.dumps(fault)).fault == fault.fault


class SteppingClock(datetime.datetime):
    """A clock on the wall that somebody sets back, an hour at every look."""

    looks = 0

    @classmethod
    def now(cls, tz=None):
        cls.looks += 1
        return datetime.datetime(2026, 10, 25, 3) - datetime.timedelta(hours=cls.looks)


@pytest.mark.parametrize("domain", ["retail", "telecom"])
@pytest.mark.parametrize("mode", ["fast", "official"])
def test_messages_stand_in_the_order_of_events_whatever_the_clock_on_the_wall_says(monkeypatch, domain, mode):
    steady = episodes.run(domain, 1, evaluation__mode=mode)
    monkeypatch.setattr("tau2.utils.utils.datetime", SteppingClock)
    stepped = episodes.run(domain, 1, evaluation__mode=mode)
    assert SteppingClock.looks > len(stepped.messages)
    assert [messages.from_record(m) for m in stepped.messages] == [messages.from_record(m) for m in steady.messages]
    assert stepped.reward == steady.reward == 1.0
    assert [t.message_index for t in stepped.turns] == [t.message_index for t in steady.turns]
    assert [m["turn_idx"] for m in stepped.messages] == list(range(len(stepped.messages)))
    times = [m["timestamp"] for m in stepped.messages]
    assert times == sorted(times)
    assert violations(stepped) == []


def test_messages_before_the_episode_stand_before_it_when_the_clock_is_set_back(monkeypatch):
    """The mock task with a history: τ² gives its messages times of its own."""
    initial = {reference: tasks.get(reference).initial_state for reference in tasks.references("mock", "base")}
    task = next(reference for reference, state in initial.items() if state and state.message_history)
    monkeypatch.setattr("tau2.utils.utils.datetime", SteppingClock)
    trajectory = episodes.runner(episodes.settings()).run(episodes.request(task))
    history = initial[task].message_history
    assert [messages.from_record(m) for m in trajectory.messages[: len(history)]] == history
    assert trajectory.reward == 1.0


def test_a_fault_keeps_the_order_of_events_too(monkeypatch):
    monkeypatch.setattr("tau2.utils.utils.datetime", SteppingClock)
    config = episodes.settings()
    trajectory = episodes.runner(config, FailingPolicy(config, _raises)).run(
        episodes.request(episodes.task("retail", 1))
    )
    assert trajectory.messages[0]["content"].startswith("Hi! How can I help you")
    assert [m["role"] for m in trajectory.messages[:3]] == ["assistant", "user", "assistant"]


def test_each_turn_tells_the_engine_how_old_the_keys_and_values_before_it_are_and_is_told_how_long_it_waited():
    asked, known = [], []

    class Updated(episodes.LocalPolicy):
        """Its weights change in place after each turn."""

        async def generate(self, input_ids, sampling, session_id, info):
            asked.append(info.prefix_version)
            known.append(info.known_tokens)
            made = await super().generate(input_ids, sampling, session_id, info)
            self.engine.version += 1
            prefix = made.prefix_version if info.prefix_version is None else info.prefix_version
            return replace(made, prefix_version=prefix, queue_seconds=0.25 * info.turn)

    config = episodes.settings()
    policy = Updated(config)
    policy.engine.version = 4
    trajectory = episodes.runner(config, policy).run(episodes.request(episodes.task("mock", 1)))
    assert len(trajectory.turns) > 1
    assert asked == [None] + [4] * (len(trajectory.turns) - 1)
    assert known == [0, *(turn.end for turn in trajectory.turns[:-1])], "what the engine was sent or sampled before"
    assert [turn.prefix_version for turn in trajectory.turns] == [4] * len(trajectory.turns)
    assert [turn.queue_seconds for turn in trajectory.turns] == [0.25 * n for n in range(len(trajectory.turns))]
    assert trajectory.oldest_version == 4


def test_a_request_s_own_number_of_turns_is_taken_instead_of_the_configured_one():
    runner = episodes.runner(episodes.settings(limits__max_turns=1))
    one = episodes.request(episodes.task("retail"))
    assert runner.run(one).termination_reason == "max_turns"
    free = runner.run(dataclasses.replace(one, max_turns=1_000_000))
    assert len(free.turns) > 1
    assert free.reward == 1.0
    assert free.provenance.limits["max_turns"] == 1_000_000
