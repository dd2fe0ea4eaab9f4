"""Every environment answers in bounded time, and the same call in the same way wherever it is made."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.tau2 import compat, domain, environment

TOO_LARGE = "Error: Expression is too large to evaluate"


def answer(world: compat.Environment, name: str, requestor: str = "assistant", call_id: str = "1", **arguments: Any):
    return world.get_response(compat.ToolCall(id=call_id, name=name, arguments=arguments, requestor=requestor))


@functools.cache
def world(name: str) -> compat.Environment:
    return domain.get(name).environment()


@functools.cache
def untouched(name: str) -> compat.Environment:
    """As τ² makes it, without us."""
    return compat.registry.get_env_constructor(name)()


# Arithmetic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**7",
        "9**9**8",
        "9**9**9",
        "9**9**9**9",
        "(9**9**9)(1)",
        "1(-9**9**9)",
        "0*(9**9**9)",
        "9**9999999//9**9999998",
        "+".join(["9**20000"] * 2000),
        "1+" * 2500 + "9**9**9",
    ],
)
@pytest.mark.parametrize("name", ["retail", "airline"])
def test_an_expression_that_would_take_long_is_a_tool_error(name, expression):
    said = answer(world(name), "calculate", expression=expression)
    assert (said.content, said.error) == (TOO_LARGE, True)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(12.50 + 7) * 3", "58.5"),
        ("9**99999 // 9**99998", "9.0"),
        ("2**(10**9 - 10**9 + 5)", "32.0"),
        ("0**9**9**2 + 1**9**9**2", "1.0"),
        ("9**9**-1", "1.28"),
        ("1/0 + 9**9**9", "Error: division by zero"),
        ("(-8)**.5", "Error: float() argument must be a string or a real number, not 'complex'"),
        ("9**400", "Error: int too large to convert to float"),
        ("1" + "+1" * 2000, "2001.0"),
        ("()*9**20", "Error: cannot fit 'int' into an index-sized integer"),
        ("import os", "Error: Invalid characters in expression"),
        (["1"], "Error: eval() arg 1 must be a string, bytes or code object"),
    ],
)
def test_an_expression_that_ends_has_the_answer_of_tau2(expression, said):
    assert answer(world("retail"), "calculate", expression=expression).content == said
    assert answer(untouched("retail"), "calculate", expression=expression).content == said


def test_whether_python_can_evaluate_a_deep_sum_is_the_same_with_and_without_the_bounds():
    deep = "1" + "+1" * 4000  # too deep for the compiler of Python 3.11, not for that of 3.13
    said = answer(untouched("retail"), "calculate", expression=deep).content
    assert said in ("Error: maximum recursion depth exceeded during compilation", "4001.0")
    assert answer(world("retail"), "calculate", expression=deep).content == said


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        st.tuples(inner, st.sampled_from(["**", "//", " - ", ")(", "(", ")", "*(", "."]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
    )


EXPRESSIONS = st.recursive(st.from_regex(r"\A ?[0-9]{1,3}\.?[0-9]?\Z"), _combined, max_leaves=12)


odd_calls = pytest.mark.filterwarnings("ignore:.* object is not callable:SyntaxWarning")


@odd_calls
@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS)
def test_arithmetic_is_tau2_s_own(expression):
    ours = answer(world("retail"), "calculate", expression=expression)
    if ours.content != TOO_LARGE:
        assert ours.content == answer(untouched("retail"), "calculate", expression=expression).content


@odd_calls
@settings(max_examples=100, deadline=None)
@given(st.text("0123456789+-*/(). ", max_size=40))
def test_any_text_of_the_characters_that_calculate_takes_is_answered(text):
    ours = answer(world("retail"), "calculate", expression=text)
    if ours.content != TOO_LARGE:
        assert ours.content == answer(untouched("retail"), "calculate", expression=text).content


def test_the_answer_does_not_depend_on_how_deep_the_stack_is():
    def deeper(levels: int, work: Callable[[], Any]) -> Any:
        return work() if not levels else deeper(levels - 1, work)

    expression = "1" + "+1" * 2850
    said = [
        deeper(levels, lambda: answer(world("retail"), "calculate", expression=expression).content)
        for levels in (0, 60, 200)
    ]
    assert said == ["2851.0"] * 3


# Other calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tool_name", "requestor", "self", "message", "x"])
def test_arguments_with_names_of_tau2_s_own_have_its_answer(name):
    call = compat.ToolCall(id="1", name="calculate", arguments={name: "1"})
    said = [each("retail").get_response(call).content for each in (world, untouched)]
    assert said[0] == said[1]
    assert said[0].startswith("Error: ")


def test_a_number_that_could_not_be_written_out_is_a_tool_error_and_leaves_the_database_as_it_was():
    fresh = domain.get("airline").environment()
    before = environment.database_hashes(fresh)
    for number in (10**4299, -(10**4299), [{"amount": 10**4299}]):
        said = answer(
            fresh,
            "update_reservation_baggages",
            reservation_id="VAAOXJ",
            total_baggages=1,
            nonfree_baggages=number,
            payment_id="credit_card_1052991",
        )
        assert said.error
    assert environment.database_hashes(fresh) == before
    assert domain.get("airline").end_state(fresh).hashes == before


def test_a_turn_that_asks_for_everything_again_and_again_is_answered_until_no_context_holds_it():
    everything = {"origin": None, "destination": None, "date": "2024-05-20"}
    calls = [
        compat.ToolCall(id=str(number), name="search_onestop_flight", arguments=everything) for number in range(40)
    ]
    fresh = domain.get("airline").environment()
    answers = [fresh.get_response(call) for call in calls]
    assert answers[0].content == answer(untouched("airline"), "search_onestop_flight", **everything).content
    assert sum(len(said.content) for said in answers) < 2**23 + 2**21
    assert (answers[-1].content, answers[-1].error) == ("Error: Too many results", True)
    turn = compat.AssistantMessage(role="assistant", tool_calls=calls)
    domain.get("airline").environment().set_state(None, None, [turn, *answers])  # raises where an answer differs


def test_a_call_has_the_arguments_that_its_record_has():
    call = compat.ToolCall(
        id="1", name="check_app_status", arguments={"app_name": math.nan, "x": [math.inf, 1]}, requestor="user"
    )
    world("telecom").get_response(call)
    assert call.arguments == {"app_name": None, "x": [None, 1]}
    assert answer(world("telecom"), "check_app_status", "user", app_name=math.nan).content == (
        "App 'None' not found on this phone."
    )


# Ids ------------------------------------------------------------------------------------------------------------------

REFUEL = {"customer_id": "C1002", "line_id": "L1004", "gb_amount": 1.0}
"""A customer without a draft bill."""


def refueled(*call_ids: str) -> dict[str, str | None]:
    world = environment.make("telecom")
    for call_id in call_ids:
        said = answer(world, "refuel_data", call_id=call_id, **REFUEL)
        assert not said.error
    return environment.database_hashes(world)


def test_the_same_call_makes_up_the_same_id_and_another_call_another():
    assert refueled("call_0_0", "call_1_0") == refueled("call_0_0", "call_1_0")
    assert refueled("call_0_0") != refueled("call_1_0")


def test_two_bills_of_one_environment_have_two_ids_even_of_calls_with_one_id():
    world = environment.make("telecom")
    for customer, line in (("C1002", "L1004"), ("C1003", "L1009")):
        said = answer(world, "refuel_data", customer_id=customer, line_id=line, gb_amount=1.0, call_id="")
        assert not said.error, said.content
    ids = [bill.bill_id for bill in world.tools.db.bills]
    assert len(set(ids)) == len(ids)


def test_an_id_that_the_gold_actions_make_up_is_another_as_it_is_in_tau2():
    world = environment.make("telecom")
    world.make_tool_call(tool_name="refuel_data", requestor="assistant", **REFUEL)
    assert environment.database_hashes(world) != refueled("call_0_0")
