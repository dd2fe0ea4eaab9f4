"""What each policy turn did, as trainers learn from it, and how it is found again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rollout_service import preflight
from rollout_service.audit.verify import verify
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.record.trajectory import TaskRef, Trajectory, Turn
from rollout_service.record.turn_facts import TurnFacts
from rollout_service.tau2 import tasks
from rollout_service.tau2.base_database import BaseDatabase
from rollout_service.tau2.database_watch import DatabaseWatch
from rollout_service.tau2.gold import CHATTER
from tests.support import episodes
from tests.support.episodes import written

NOTHING = TurnFacts(valid_calls=0, refused_calls=0, wrote=False, gold_actions=[], communicated=[])


def played(*texts: str, domain: str = "mock", position: int = 0, **overrides: Any) -> Trajectory:
    """An episode in which the policy writes these texts, one a turn."""
    config = episodes.settings(limits__max_turns=len(texts), **overrides)
    return episodes.runner(config, episodes.WrittenTurns(*texts)).run(episodes.request(episodes.task(domain, position)))


def facts_of(trajectory: Trajectory) -> list[TurnFacts]:
    return [turn.facts for turn in trajectory.turns]


def violations(trajectory: Trajectory, *checks: str) -> list[str]:
    return [str(v) for _, found in verify([trajectory], checks=checks) for v in found]


def test_a_call_that_the_environment_carries_out_is_valid_and_one_that_changes_the_database_wrote():
    create = written("create_task", user_id="user_1", title="Important Meeting")
    done = written("update_task_status", task_id="task_1", status="completed")
    first, second, third, fourth = facts_of(played(written("get_users"), create, done, done))
    assert (first.valid_calls, first.refused_calls, first.wrote) == (1, 0, False)
    assert (second.valid_calls, second.wrote) == (1, True)
    assert (third.valid_calls, third.wrote) == (1, True)
    assert (fourth.valid_calls, fourth.wrote) == (1, False)  # it may write, and left all as it was


@settings(max_examples=8, deadline=None)
@given(name=st.from_regex(r"[a-z]{3,12}_tool", fullmatch=True), beside=st.booleans())
def test_a_call_of_an_unknown_tool_is_never_valid(name, beside):
    texts = [written(name, user_id="user_1")] + ([written("get_users")] if beside else [])
    [facts] = facts_of(played("\n".join(texts)))
    assert (facts.valid_calls, facts.refused_calls, facts.wrote) == (int(beside), 1, False)


def test_wrong_arguments_are_refused_and_a_malformed_call_is_neither_valid_nor_refused():
    trajectory = played(
        written("create_task", user_id="user_1"),
        '<tool_call>\n{"name": "get_users", "arguments": {}\n</tool_call>',
        written("create_task", user_id="nobody", title="x"),
    )
    found = [(facts.valid_calls, facts.refused_calls, facts.wrote) for facts in facts_of(trajectory)]
    assert found == [(0, 1, False), (0, 0, False), (0, 1, False)]
    assert trajectory.malformed_call_count == 1


def test_a_gold_action_is_credited_to_the_first_turn_that_matches_it_and_only_to_that():
    create = written("create_task", user_id="user_1", title="Important Meeting")
    other = written("create_task", user_id="user_1", title="Another")
    assert [facts.gold_actions for facts in facts_of(played(other, create, create))] == [[], [0], []]


def test_a_text_is_communicated_where_tau2_s_search_finds_it_first():
    position = next(
        number
        for number, task in enumerate(tasks.references("retail"))
        if any(
            text.isdecimal() and len(text) > 3 for text in tasks.get(task).evaluation_criteria.communicate_info or []
        )
    )
    wanted = tasks.get(episodes.task("retail", position)).evaluation_criteria.communicate_info
    at = next(number for number, text in enumerate(wanted) if text.isdecimal() and len(text) > 3)
    with_comma = f"It is {wanted[at][:-3]},{wanted[at][-3:]}."
    facts = facts_of(played(CHATTER, with_comma, domain="retail", position=position))
    assert [at in each.communicated for each in facts] == [False, True]


@pytest.mark.parametrize(
    ("domain", "positions"), [("mock", range(9)), ("telecom", (0, 26)), ("retail", (5,)), ("airline", (7,))]
)
def test_a_gold_replay_matches_each_of_the_policy_s_actions_once_and_says_each_text_once(domain, positions):
    script = {"calls_per_turn": 2, "chatter": 0.3, "malformed_call": 0.3}
    runner = episodes.runner(episodes.settings(policy__script=script))
    for position in positions:
        trajectory = runner.run(episodes.request(episodes.task(domain, position), seed=position))
        criteria = tasks.get(trajectory.task).evaluation_criteria
        wanted = [at for at, action in enumerate(criteria.actions or []) if action.requestor == "assistant"]
        assert [at for facts in facts_of(trajectory) for at in facts.gold_actions] == wanted
        said = [at for facts in facts_of(trajectory) for at in facts.communicated]
        assert sorted(said) == list(range(len(criteria.communicate_info or [])))
        assert violations(trajectory, "record", *(["reward"] if domain in ("mock", "telecom") else [])) == []


def test_calls_of_the_user_are_not_the_policy_s():
    trajectory = episodes.run("telecom", 26)
    by_user = sum(len(m.get("tool_calls") or []) for m in trajectory.messages if m["role"] == "user")
    by_policy = sum(len(turn.tool_calls) for turn in trajectory.turns)
    facts = facts_of(trajectory)
    assert by_user > 0
    assert sum(each.valid_calls + each.refused_calls for each in facts) == by_policy
    assert [
        each for each, turn in zip(facts, trajectory.turns, strict=True) if each.wrote and not turn.tool_calls
    ] == []


def test_a_solo_agent_s_done_is_valid():
    trajectory = episodes.run("telecom", 26, agent="solo")
    assert trajectory.outcome == "completed"
    last = trajectory.turns[-1]
    assert (last.tool_calls, last.facts.valid_calls, last.facts.refused_calls, last.facts.wrote) == (
        ["ok"],
        1,
        0,
        False,
    )
    assert any(facts.wrote for facts in facts_of(trajectory))
    assert violations(trajectory, "record", "reward") == []


class _Failing(episodes.WrittenTurns):
    """Writes its texts and then fails."""

    async def generate(self, input_ids: Any, sampling: Any, session_id: str, info: TurnInfo) -> Generation:
        if info.turn == len(self.texts):
            raise RuntimeError("the engine is gone")
        return await super().generate(input_ids, sampling, session_id, info)


def test_what_happened_before_a_limit_or_a_fault_stays_known():
    create = written("create_task", user_id="user_1", title="Important Meeting")
    truncated = played(create, CHATTER)
    aborted = episodes.runner(episodes.settings(), _Failing(create)).run(episodes.request(episodes.task("mock")))
    assert (truncated.outcome, aborted.outcome, aborted.reward) == ("truncated", "aborted", None)
    assert facts_of(truncated) == [TurnFacts(1, 0, True, [0], []), NOTHING]
    assert facts_of(aborted) == [TurnFacts(1, 0, True, [0], [])]
    assert violations(truncated, "record", "reward") == violations(aborted, "record", "reward") == []
    aborted.turns[0].facts.gold_actions = []
    assert violations(aborted, "reward") == ["t-0 [reward] replay: turn 0: gold_actions is [0], recorded []"]


def test_an_empty_turn_did_nothing():
    assert facts_of(played("")) == [NOTHING]


def _other(facts: TurnFacts, name: str) -> Any:
    value = getattr(facts, name)
    return not value if name == "wrote" else [*value, 9] if isinstance(value, list) else value + 1


@pytest.mark.parametrize("name", ["valid_calls", "refused_calls", "wrote", "gold_actions", "communicated"])
def test_the_audit_finds_a_changed_fact(name):
    trajectory = episodes.run("mock", 1)
    assert violations(trajectory, "record", "reward") == []
    changed = copy.deepcopy(trajectory)
    facts = next(turn.facts for turn in changed.turns if turn.facts.valid_calls)
    setattr(facts, name, _other(facts, name))
    assert any(f": {name} is " in text for text in violations(changed, "reward"))
    setattr(facts, name, None)  # not known, as in a file of an older release
    assert violations(changed, "record", "reward") == []


def test_the_audit_needs_no_tau2_to_find_a_credit_that_is_given_twice_or_without_a_match():
    trajectory = episodes.run("mock", 1)
    first, last = trajectory.turns[0].facts, trajectory.turns[-1].facts
    assert first.gold_actions == [0]
    last.gold_actions = [0]
    assert violations(trajectory, "record") == ["t-0 [record] turns: their gold_actions have 0 more than once"]
    last.gold_actions = [7]
    [said] = violations(trajectory, "record")
    assert said.endswith("their gold_actions have 7, which the evaluator did not find")


def test_turns_of_older_files_have_no_facts_and_pass():
    trajectory = episodes.run("mock", 1)
    record = trajectory.to_dict()
    for segment in record["segments"]:
        for turn in segment["turns"]:
            del turn["facts"]
    old = Trajectory.from_dict(json.loads(json.dumps(record)))
    assert facts_of(old) == [TurnFacts()] * len(trajectory.turns)
    assert violations(old, "record", "reward") == []
    assert Turn(0, 1, "stop").facts == TurnFacts(None, None, None, None, None)


def own_task(path: Path, domain: str, position: int, initial: dict[str, Any]) -> TaskRef:
    """A task of the domain that begins in this state."""
    record = tasks.get(episodes.task(domain, position)).model_dump(mode="json", exclude_none=True)
    path.write_text(json.dumps([record | {"initial_state": initial}]))
    [reference] = preflight.check_tasks(episodes.settings(tasks__domain=domain, tasks__path=str(path)))
    return reference


def turns_of(task: TaskRef, *texts: str) -> Trajectory:
    config = episodes.settings(limits__max_turns=len(texts))
    return episodes.runner(config, episodes.WrittenTurns(*texts)).run(episodes.request(task))


def test_a_call_of_the_task_s_own_messages_is_not_the_policy_s_that_has_the_same_id(tmp_path):
    given = played(written("create_task", user_id="user_1", title="Given"), CHATTER)
    assert facts_of(given)[0].wrote
    task = own_task(tmp_path / "own.json", "mock", 0, {"message_history": given.messages})
    trajectory = turns_of(task, written("get_users"))
    [call] = trajectory.messages[trajectory.turns[0].message_index]["tool_calls"]
    assert call["id"] in {call["id"] for message in given.messages for call in message.get("tool_calls") or []}
    assert [facts.wrote for facts in facts_of(trajectory)] == [False]
    assert violations(trajectory, "record", "reward") == []


def test_a_replay_begins_where_the_episode_did_also_if_the_first_call_fails(tmp_path):
    """τ² brings telecom's phone in line with the network before the first turn, which is nobody's call."""
    surroundings = {"phone_number": "555-123-2002"}
    task = own_task(
        tmp_path / "own.json",
        "telecom",
        26,
        {"initialization_data": {"user_data": {"surroundings": surroundings}}},
    )
    changes_nothing = written("enable_roaming", customer_id="C1001", line_id="L1002")
    trajectory = turns_of(task, written("get_customer_by_id", customer_id="nobody"), changes_nothing)
    first, second = facts_of(trajectory)
    assert (first.refused_calls, second.valid_calls, second.wrote) == (1, 1, False)
    assert violations(trajectory, "record", "reward") == []


@pytest.mark.parametrize("text", ["plain", "\ud800"], ids=["text", "half_a_pair"])
def test_a_database_of_one_s_own_is_watched_whatever_it_holds(text):
    database = {"notes": {"a": text}, "raw": b"\xff"}
    assert not DatabaseWatch(database).has_changed()
    watch = DatabaseWatch(database)
    database["notes"]["a"] += text
    assert watch.has_changed()


class Record(BaseModel):
    count: float = 0.0
    parts: list[str] = []


class Store(BaseModel):
    records: dict[str, Record]
    others: list[Record]
    open: bool = False


KEYS = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), KEYS),
        st.tuples(st.just("count"), KEYS, st.sampled_from([0.0, 1.0])),
        st.tuples(st.just("part"), KEYS),
        st.tuples(st.just("pop"), KEYS),
        st.tuples(st.just("put"), KEYS, st.sampled_from([0.0, 1.0])),
        st.tuples(st.just("other"), st.sampled_from([0.0, 1.0])),
        st.tuples(st.just("open"), st.booleans()),
        st.tuples(st.just("all")),
    ),
    max_size=5,
)


def _take(store: Store, step: tuple[Any, ...]) -> None:
    match step:
        case ("count", key, value) if key in store.records:
            store.records[key].count = value
        case ("part", key) if key in store.records:
            parts = store.records[key].parts
            parts.remove("x") if "x" in parts else parts.append("x")
        case ("pop", key):
            store.records.pop(key, None)
        case ("put", key, value):
            store.records[key] = Record(count=value)
        case ("other", value):
            store.others[0].count = value
        case ("open", value):
            store.open = value
        case ("all",):
            list(store.records.values())
        case ("read", key):
            store.records.get(key)


@settings(max_examples=150, deadline=None)
@given(before=STEPS, during=STEPS, plain=st.booleans())
def test_a_watch_says_that_the_contents_changed_exactly_if_the_hash_did(before, during, plain):
    original = Store(records={"a": Record(), "b": Record(count=1.0)}, others=[Record()])
    base = BaseDatabase(original.model_copy(deep=True))
    store = original if plain else base.overlay()
    for step in before:
        _take(store, step)

    def contents() -> str:
        return json.dumps(store.model_dump(), sort_keys=True)

    earlier = contents()
    watch = DatabaseWatch(store)
    for step in during:
        _take(store, step)
    assert watch.has_changed() == (contents() != earlier)
    assert plain or json.dumps(store.model_dump(), sort_keys=True) == contents()
