"""What a user could have said, and what no user could."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.tau2 import gold, tasks
from rollout_service.tau2.answer import EmptyAnswer, ImpossibleAnswer, spoken

TOOLS = ["toggle_data", "check_status_bar"]
ARGUMENTS = '{"on": true}'


def verdict(content: str | None, calls: tuple[str, ...] = (), **about: Any) -> str:
    """`said`, `empty`, or the remedy's first words."""
    try:
        spoken(content, calls, tools=TOOLS, **about)
    except EmptyAnswer:
        return "empty"
    except ImpossibleAnswer as error:
        return f"{error}; {error.remedy}"
    return "said"


CALLS = {
    "hermes": f'<tool_call>\n{{"name": "toggle_data", "arguments": {ARGUMENTS}}}\n</tool_call>',
    "hermes, after words": f'One moment.\n<tool_call>{{"name": "toggle_data", "arguments": {ARGUMENTS}}}</tool_call>',
    "hermes, cut by a stop string": '<tool_call>\n{"name": "toggle_data", "arguments"',
    "qwen3-coder": "<tool_call>\n<function=toggle_data>\n<parameter=on>\ntrue\n</parameter>\n</function>\n</tool_call>",
    "llama function": f"<function=toggle_data>{ARGUMENTS}</function>",
    "glm": "<tool_call>toggle_data\n<arg_key>on</arg_key>\n<arg_value>true</arg_value>\n</tool_call>",
    "mistral": f'[TOOL_CALLS][{{"name": "toggle_data", "arguments": {ARGUMENTS}}}]',
    "mistral 3": f"[TOOL_CALLS]toggle_data[ARGS]{ARGUMENTS}",
    "mistral without control tokens": f"toggle_data{ARGUMENTS}",
    "llama": f'<|python_tag|>{{"name": "toggle_data", "parameters": {ARGUMENTS}}}',
    "llama without control tokens": f'{{"name": "toggle_data", "parameters": {ARGUMENTS}}}',
    "llama in words": f'Let me see: {{"name": "toggle_data", "parameters": {ARGUMENTS}}}',
    "fenced json": f'```json\n{{"name": "anything", "arguments": {ARGUMENTS}}}\n```',
    "openai's json": f'{{"tool_calls": [{{"function": {{"name": "f", "arguments": {ARGUMENTS}}}}}]}}',
    "a list of them": f'[{{"function": {{"name": "f", "arguments": {ARGUMENTS}}}}}]',
    "pythonic": "[toggle_data(on=True), check_status_bar()]",
    "one pythonic": "check_status_bar()",
    "gemma": "```tool_code\nprint(default_api.toggle_data(on=True))\n```",
    "gemma without its fence": "print(default_api.toggle_data(on=True))",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>toggle_data",
    "deepseek 3.2": '<｜DSML｜function_calls><｜DSML｜invoke name="toggle_data">',
    "kimi": f"<|tool_calls_section_begin|><|tool_call_begin|>functions.toggle_data:0{ARGUMENTS}",
    "kimi without control tokens": f"functions.toggle_data:0{ARGUMENTS}",
    "minimax": '<minimax:tool_call>\n<invoke name="toggle_data">\n</invoke>\n</minimax:tool_call>',
    "anthropic's old": '<function_calls>\n<invoke name="toggle_data"></invoke></function_calls>',
    "nemotron": f'<TOOLCALL>[{{"name": "toggle_data", "arguments": {ARGUMENTS}}}]</TOOLCALL>',
    "harmony": f"<|channel|>commentary to=functions.toggle_data <|constrain|>json<|message|>{ARGUMENTS}<|call|>",
    "harmony without control tokens": f"commentary to=functions.toggle_data json{ARGUMENTS}",
    "react": 'Thought: data is off.\nAction: toggle_data\nAction Input: {"on": true}',
    "qwen": f"✿FUNCTION✿: toggle_data\n✿ARGS✿: {ARGUMENTS}",
    "xml by name": "<toggle_data><on>true</on></toggle_data>",
    "a tool's result that it made up": "<tool_response>\nData is on.\n</tool_response>",
}


@pytest.mark.parametrize("text", CALLS.values(), ids=CALLS)
def test_a_tool_call_as_text_is_no_answer_and_the_remedy_is_told(text: str) -> None:
    assert verdict(text).startswith(("a tool call as text", "control tokens in the text"))
    assert "user.model" in verdict(text)


THOUGHTS = {
    "without its opening": "I should ask about my order.</think>\n\nWhere is my order?",
    "never closed": "<think>I should ask about my order. Where is my order?",
    "within the answer": "Where is <think>which?</think> my order?",
    "two": "<think>One.</think><think>Two.</think>Where is my order?",
    "nested": "<think>One <think>two</think> three</think>Where is my order?",
    "mistral, never closed": "[THINK]I should ask. Where is my order?",
    "kimi, without its opening": "I should ask.◁/think▷Where is my order?",
    "another name": "I should ask.</reasoning>Where is my order?",
    "harmony": "<|channel|>analysis<|message|>I should ask.<|end|><|start|>assistant<|channel|>final<|message|>Where?",
    "harmony without control tokens": "analysisI should ask.assistantfinalWhere is my order?",
    "gemma": "<|channel>thought\nI should ask.<channel|>Where is my order?",
    "with a stop signal": "<think>Shall I say ###STOP### now? Not yet.</think>Where is my order?",
}


@pytest.mark.parametrize("text", THOUGHTS.values(), ids=THOUGHTS)
def test_a_thought_that_leaks_is_no_answer(text: str) -> None:
    assert "thought" in verdict(text) or verdict(text).startswith("control tokens")


@pytest.mark.parametrize(
    ("thought", "mark"),
    [
        ("<think>\n\n</think>\n\n", "Qwen3 without thinking"),
        ("<think>I may have to call <tool_call>.</think>", "Qwen3"),
        ("\n<thinking>I should\nask.</thinking>\n", "by another name"),
        ("[THINK]I should ask.[/THINK]", "Mistral"),
        ("◁think▷I should ask.◁/think▷", "Kimi"),
    ],
)
def test_a_whole_thought_before_the_answer_is_taken_off_as_a_reasoning_parser_does(thought: str, mark: str) -> None:
    assert spoken(f"{thought}Where is my order?") == "Where is my order?", mark


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nHi",
        "Hi<|im_end|>",
        "Hi</s>",
        "Hi<end_of_turn>",
        "[INST] Hi [/INST]",
        "<|eot_id|>",
        "<｜User｜>",
    ],
)
def test_control_tokens_are_nothing_that_a_user_says(text: str) -> None:
    assert verdict(text).startswith("control tokens")


@pytest.mark.parametrize("text", [None, "", " \n", "\u200b\ufeff", "<think>Nothing to say.</think>\n"])
def test_nothing_is_an_empty_answer_unless_there_is_a_call(text: str | None) -> None:
    assert verdict(text) == "empty"
    assert spoken(text, ["toggle_data"], tools=TOOLS) is None


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "abort", "error", "model_context_window_exceeded"])
def test_an_answer_that_was_cut_off_is_no_answer_even_with_a_stop_signal(reason: str) -> None:
    assert verdict("Thank you. ###STOP###", finish_reasons=("stop", reason)).startswith("an answer that was cut off")


def test_a_refusal_a_nameless_call_half_a_character_and_a_call_of_one_who_has_no_tools_are_no_answers() -> None:
    assert "refused" in verdict("I cannot.", refused=True)
    assert "refused" in verdict("My order is", finish_reasons=("content_filter",))
    assert "without a name" in verdict(None, ("",))
    assert "surrogate" in verdict("Half: \ud83d")
    with pytest.raises(ImpossibleAnswer, match="no tools"):
        spoken(None, ["toggle_data"])


@pytest.mark.parametrize(
    "text",
    [
        "###STOP###",
        "Thank you, that is all. ###STOP###",
        "###TRANSFER###",
        "I don't know that. ###OUT-OF-SCOPE###",
        "I <3 it, 5 < 6 and 7 > 3; a <- b -> c; <| |> done",
        "Write to <mei.davis@example.com>, please; or to https://example.com/?a=<id>&b=[1]",
        "My name is <name> and it costs <$50>. </rant>",
        "[sighs] *thinking* Hmm… I think > all of you.",
        "I ran check_status_bar() and it said: 📶 none | 5G | Data Disabled",
        'It says {"airplane_mode": false, "data": {"on": true}}',
        '{"order_id": "#W1234", "name": "Mei"}',
        "[1, 2]",
        "The function is broken, and the tool calls me an assistant. Final analysis: no.",
        "Analysis paralysis! The assistant finally answered.",
        "Action: please refund me. Thought: none.",
        "Is it toggle_data? I have no such button.",
        "```\nError 0x800f0922\n```",
        "😅",
        "?",
    ],
)
def test_what_a_user_may_well_say_passes_as_it_is(text: str) -> None:
    assert spoken(text, tools=TOOLS) == text
    assert spoken(text) == text


def test_every_users_opening_and_scenario_could_be_said() -> None:
    for domain in ("mock", "airline", "retail", "telecom"):
        for reference in tasks.references(domain, "base"):
            task = tasks.get(reference)
            for text in (gold.opening(task), str(task.user_scenario)):
                assert spoken(text, tools=TOOLS) == text


@pytest.mark.parametrize("markup", ["<tool_call>", "</think>", "<|im_end|>", "[TOOL_CALLS]"])
def test_markup_that_the_agent_wrote_may_be_quoted(markup: str) -> None:
    """Or else a policy that leaks markup would end its episodes as the user's fault, without a score."""
    text = f"What does {markup} mean?"
    assert verdict(text) != "said"
    assert verdict(text, heard=["Hello!", f"Sure. {markup} Done."]) == "said"
    assert verdict(f"{text} <tool_response>", heard=[f"Sure. {markup}"]) != "said"


def test_a_call_in_json_that_the_agent_wrote_may_be_quoted() -> None:
    """Or else a policy could ask the user to repeat it, and end its episode as the user's fault."""
    call = f'{{"name": "anything", "arguments": {ARGUMENTS}}}'
    assert verdict(call).startswith("a tool call as text")
    assert verdict(call, heard=[f"Please answer with {call}"]) == "said"


@pytest.mark.parametrize("text", ["```json{0}{{", "```a{0}x", "Hi{0}x", "Action{0}x", "{0}```{0}x"])
@pytest.mark.parametrize("space", [" ", "\n", "\t\n"])
def test_an_answer_with_a_long_run_of_white_space_is_read_in_time_that_grows_with_its_length(
    text: str, space: str
) -> None:
    """Models loop on it. A pattern that tries every start with every end would hold the interpreter for hours."""
    assert verdict(text.format(space * 50_000)) == "said"


@given(st.text(st.characters(exclude_characters="<[{◁✿]`|:", exclude_categories=["Cs"]), max_size=80))
def test_text_without_markup_is_said_or_empty(text: str) -> None:
    assert verdict(text) in ("said", "empty") or text.lower().startswith("analysis") or "(" in text


@given(st.text(max_size=60), st.sampled_from(sorted(CALLS.values())), st.text(max_size=20))
def test_whatever_the_model_wrote_the_verdict_is_one_of_ours(before: str, call: str, after: str) -> None:
    for text in (before, before + call + after, call[: len(before)] + after, json.dumps(before)):
        assert verdict(text)
