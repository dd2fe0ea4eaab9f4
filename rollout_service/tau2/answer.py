"""Decides whether a user could have given the answer of a user simulator's model.

Invariant: what `spoken` returns is something that a person could have written to an agent; calls are of the user's own
tools. What a server or a model leaves in the text by mistake never reaches the conversation: tool calls that nobody
parsed, thoughts, control tokens, half a sentence. Otherwise the policy would be scored for its reply to that.

A complete thought at the start (`<think>…</think>`, then the answer) is removed. A server with a reasoning parser would
have sent only the rest, and a server without one sends a thought every time, so asking again would not help. (litellm
itself removes a thought with the tag `think`.) An incomplete thought is refused, because it does not show where the
answer begins.

The user may quote text that the agent wrote. Otherwise a policy could end its episodes as somebody else's fault, by
writing markup that the user then asks about.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

from rollout_service.tau2 import compat


class ImpossibleAnswer(ValueError):
    """No user could have said this. `remedy` says what helps if it keeps happening."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy


class EmptyAnswer(ImpossibleAnswer):
    """The answer has neither text nor a call."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, "If it keeps happening, choose another user.model, or turn its thinking off.")


_THOUGHTS = "think|thinking|thought|thoughts|reasoning|reflection|seed:think|mm:think"
_LEADING_THOUGHT = re.compile(
    rf"\s*(?:<({_THOUGHTS})>.*?</\1>|(?-i:\[THINK\].*?\[/THINK\])|◁think▷.*?◁/think▷)\s*", re.DOTALL | re.IGNORECASE
)
_THOUGHT = re.compile(
    rf"</?(?:{_THOUGHTS})\s*>|(?-i:\[/?THINK\])|◁/?think▷"
    # gpt-oss's channels, where a server leaves their control tokens out
    r"|\Aanalysis(?=[A-Z])|assistant(?:final|commentary|analysis)(?=[A-Z\s<])",
    re.IGNORECASE,
)
_CALL = re.compile(
    r"</?(?:[a-z]+[:_])?(?:tool_?calls?|tool_code|tool_use|tool_responses?|tool_results?|tool_outputs?|available_tools"
    r"|function_?calls?|function_responses?|arg_key|arg_value)\b"
    r"|</?(?:[a-z]+:)?(?:function|parameter|invoke)(?:\s*=|\s+name\s*=|\s*>)|(?-i:</?tools>)"
    r"|(?-i:\[/?(?:TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|ARGS|CALL_ID)\]|✿[A-Z]+✿)|```\s*tool_\w+"
    r"|to=functions\.\w|\bfunctions\.\w+:\d|^[ \t]*Action Input\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_CONTROL = re.compile(
    r"<[|｜][^\s<>|｜]{1,64}[|｜>]|<[|｜] ?\w[^\n<>|｜]{0,64}[|｜]>|<[^\s<>|｜]{1,64}[|｜]>"
    r"|</?(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|</s>|<</?SYS>>|\]~!?b\[?\]?|\[e~\["
    r"|\[/?(?:INST|SYSTEM_PROMPT|BOS|EOS|EOT|gMASK)\]"
)

_FENCE = "```"
_LANGUAGE = re.compile(r"\A\w+")

_CUT_OFF = {
    *("length", "max_tokens", "model_length", "model_context_window_exceeded", "incomplete"),
    *("abort", "aborted", "cancelled", "error", "network_error", "insufficient_system_resource"),
    *("malformed_function_call", "malformed_response", "unexpected_tool_call", "too_many_tool_calls"),
}
"""Finish reasons of incomplete answers, in lower case. litellm reports most of them as `stop`."""

_CALL_REMEDY = (
    "Give the server of user.model the model's tool-call parser (vLLM: --enable-auto-tool-choice --tool-call-parser; "
    "SGLang: --tool-call-parser), or choose another model."
)
_THOUGHT_REMEDY = (
    "Give the server of user.model the model's reasoning parser (vLLM, SGLang: --reasoning-parser), or turn its "
    "thinking off with user.arguments."
)
_CONTROL_REMEDY = "Check the chat template and the stop tokens of user.model's server, or choose another model."
_CUT_REMEDY = "Raise or leave out max_tokens in user.arguments, or turn the model's thinking off."


def spoken(
    content: str | None,
    calls: Collection[str] = (),
    *,
    finish_reasons: Iterable[str | None] = (),
    refused: bool = False,
    tools: Collection[str] = (),
    heard: Iterable[str] = (),
) -> str | None:
    """The text that the user says, if a user could have said it. None: the answer has calls and no text.

    Args:
        content: the text, as the API gave it.
        calls: names of the tools that are called.
        finish_reasons: why the text ends, as the API and as litellm say it.
        refused: whether the API marked the answer as a refusal.
        tools: names of the user's own tools.
        heard: what the agent and the tools have said to the user so far. The user may quote it.

    Raises:
        EmptyAnswer: there is no text and no call.
        ImpossibleAnswer: no user could have said this.
    """
    reasons = {str(reason).lower() for reason in finish_reasons if reason}
    if refused or "content_filter" in reasons:
        raise ImpossibleAnswer("the model refused to play the user")
    if cut := reasons & _CUT_OFF:
        raise ImpossibleAnswer(f"an answer that was cut off (finish_reason {min(cut)})", _CUT_REMEDY)
    if not all(calls):
        raise ImpossibleAnswer("a tool call without a name")
    if calls and not tools:
        raise ImpossibleAnswer(f"a call of the tool {next(iter(calls))!r}, and this user has no tools")
    try:
        (content or "").encode()
    except UnicodeEncodeError:
        raise ImpossibleAnswer("text that is not Unicode (half of a surrogate pair)") from None
    text = _without_thought(content) if content else content
    if text and (found := _markup(text, tools, tuple(heard))) is not None:
        raise found
    if text and _is_visible(text):
        return text
    if calls:
        return None
    raise EmptyAnswer("an empty answer" if text == content else "a thought and no answer after it")


def _without_thought(content: str) -> str:
    """The text after a complete thought at its start, or all of it if there is none."""
    thought = _LEADING_THOUGHT.match(content)
    if thought is None:
        return content
    if stop := next((signal for signal in compat.STOP_SIGNALS if signal in thought.group()), None):
        raise ImpossibleAnswer(f"{stop} within a thought: whether the user means it is not clear", _THOUGHT_REMEDY)
    return content[thought.end() :]


def _markup(text: str, tools: Collection[str], heard: tuple[str, ...]) -> ImpossibleAnswer | None:
    """What the text contains that no user writes. None: nothing."""
    kinds = (
        (_THOUGHT, "a thought in the answer", _THOUGHT_REMEDY),
        (_CALL, "a tool call as text", _CALL_REMEDY),
        (_named_call(tools), "a tool call as text", _CALL_REMEDY),
        (_CONTROL, "control tokens in the text", _CONTROL_REMEDY),
    )
    for pattern, problem, remedy in kinds:
        for match in pattern.finditer(text) if pattern else ():
            shown = match.group().strip()
            if not any(shown in said for said in heard):
                return ImpossibleAnswer(f"{problem} ({shown[:40]!r})", remedy)
    if _is_call(_json(text)) and not any(text.strip() in said for said in heard):
        return ImpossibleAnswer("a tool call as text (nothing but JSON)", _CALL_REMEDY)
    return None


def _named_call(tools: Collection[str]) -> re.Pattern[str] | None:
    """Finds a call of one of these tools whose markup is missing or unknown."""
    if not tools:
        return None
    name = rf"(?:{'|'.join(map(re.escape, tools))})"
    python = rf"(?:print\()?(?:\w+\.)*{name}\([^()]*\)\)?"
    return re.compile(
        rf'"(?:name|function|tool|tool_name)"\s*:\s*"(?:\w+\.)*{name}"|</?{name}\b[^<>]*>'
        rf"|\A\W*{name}\s*(?:\{{|\[ARGS\])|^[ \t]*Action\s*:\s*{name}\b"
        rf"|\A[`\[\s]*(?:python\s+)?{python}(?:[\s,;]+{python})*[`\]\s]*\Z",
        re.MULTILINE,
    )


def _json(text: str) -> Any:
    bare = text.strip()
    if bare.startswith(_FENCE) and bare.endswith(_FENCE):
        bare = _LANGUAGE.sub("", bare.strip("`")).strip()
    if not bare.startswith(("{", "[")):
        return None
    try:
        return json.loads(bare)
    except (ValueError, RecursionError):
        return None


def _is_call(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_call, value))
    if not isinstance(value, dict):
        return False
    named = any(isinstance(value.get(key), str | dict) for key in ("name", "function", "tool", "tool_name"))
    given = any(key in value for key in ("arguments", "parameters", "args", "tool_input"))
    return "tool_calls" in value or (named and given) or _is_call(value.get("function"))


def _is_visible(text: str) -> bool:
    """Whether the text has a visible character: not only white space, control and formatting characters."""
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)
