"""The facts of a trajectory agree with the episode that was played, and say None where nobody checked."""

from __future__ import annotations

from collections import Counter

from rollout_service.chat.parsed_turn import MALFORMED_ARGUMENT
from rollout_service.record.trajectory import Outcome, Trajectory
from rollout_service.report.facts import CallState, Facts, GoldState
from tests.support import episodes
from tests.support.trajectories import make_trajectory


def played(*texts: str, **overrides: object) -> Trajectory:
    """An episode of mock's first task, in which the policy writes these turns."""
    config = episodes.settings(tasks__domain="mock", **overrides)
    runner = episodes.runner(config, episodes.WrittenTurns(*texts))
    return runner.run(episodes.request(episodes.task("mock")))


def test_a_perfect_episode_matches_every_gold_action_and_makes_no_bad_call():
    trajectory = episodes.run("mock", 0)
    facts = Facts.of(trajectory)
    assert trajectory.reward == 1.0
    assert facts.database is True
    assert facts.communicated == ()
    assert [(action.name, action.state) for action in facts.gold or ()] == [("create_task", GoldState.MATCHED)]
    assert {call.state for call in facts.calls} == {CallState.VALID}
    for call in facts.calls:
        assert call.message is not None
        assert call.answer is not None
        names = [each["name"] for each in trajectory.messages[call.message]["tool_calls"]]
        assert call.name in names
        assert trajectory.messages[call.answer]["role"] == "tool"


def test_each_call_is_valid_malformed_or_refused_as_the_environment_answered():
    create = {"user_id": "user_1", "description": "x"}
    facts = Facts.of(
        played(
            episodes.written("create_task", title="Another title", **create),
            episodes.written("create_task", title="Nobody's", user_id="nobody"),
            '<tool_call>\n{"name": "create_task", "arguments": {\n</tool_call>',
            "All done.",
        )
    )
    assert [call.state for call in facts.calls] == [CallState.VALID, CallState.REFUSED, CallState.MALFORMED]
    assert [bool(call.problem) for call in facts.calls] == [False, False, True]
    assert [action.state for action in facts.gold or ()] == [GoldState.WRONG_ARGUMENTS]
    assert facts.database is False


def test_without_a_call_the_gold_action_is_missing():
    facts = Facts.of(played("All done."))
    assert facts.calls == ()
    assert [action.state for action in facts.gold or ()] == [GoldState.MISSING]


def test_an_episode_that_a_limit_ended_has_no_checks_and_its_last_call_has_no_answer():
    call = episodes.written("get_users")
    trajectory = played(call, call, call, limits__max_turns=3)
    facts = Facts.of(trajectory)
    assert trajectory.outcome is Outcome.TRUNCATED
    assert (facts.gold, facts.communicated, facts.database, facts.assertions, facts.judged) == (None,) * 5
    assert Counter(call.state for call in facts.calls)[CallState.VALID] >= 2
    assert len(facts.calls) == 3


def test_checks_keep_their_texts():
    info = {
        "communicate_checks": [{"info": "42", "met": False, "justification": "Information '42' not communicated."}],
        "env_assertions": [
            {"env_assertion": {"func_name": "is_on", "arguments": {"sim": 1}, "assert_value": False}, "met": True}
        ],
        "nl_assertions": [{"nl_assertion": "It was polite.", "met": True, "justification": "yes"}],
    }
    facts = Facts.of(make_trajectory(reward_info=info))
    assert [(check.text, check.met) for check in facts.communicated or ()] == [("42", False)]
    assert [(check.text, check.met) for check in facts.assertions or ()] == [("not is_on(sim=1)", True)]
    assert [(check.text, check.why) for check in facts.judged or ()] == [("It was polite.", "yes")]
    assert facts.gold is None


def test_the_calls_of_a_turn_that_became_no_message_are_counted():
    facts = Facts.of(make_trajectory())
    assert [(call.state, call.message) for call in facts.calls] == [(CallState.UNANSWERED, None)] * 2


def test_a_call_whose_message_holds_a_broken_argument_is_malformed_even_where_its_turn_says_nothing():
    call = {"id": "c", "name": "pay", "arguments": {MALFORMED_ARGUMENT: "{"}}
    facts = Facts.of(make_trajectory(messages=[{"role": "assistant", "tool_calls": [call]}], segments=[]))
    assert [(each.name, each.state, each.problem) for each in facts.calls] == [
        ("pay", CallState.MALFORMED, MALFORMED_ARGUMENT)
    ]
