"""What `codec` prints: what was learned of a chat template, a conversation in its tokens, and what was proved.

Invariant: every cell comes from the codec itself; nothing is known of any model.
"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rollout_service.chat.closing import Ending
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.grammar import Grammar, JsonObject, NameThenJson
from rollout_service.chat.specimen import conversation


def print_codec(codec: ChatCodec) -> None:
    """Print the three tables of a codec."""
    console = Console()
    console.print(_learned(codec))
    console.print(_specimen(codec))
    console.print(_proof(codec))


def _learned(codec: ChatCodec) -> Table:
    table = Table(show_header=False, title=f"What was learned of {escape(codec.name)}")
    form = codec.learned.template.form
    rows = {
        "a text turn ends with": _ending(codec.closing.text),
        "a turn with calls ends with": _ending(codec.closing.calls),
        "stop tokens": ", ".join(f"{i} {codec.decode([i])}" for i in codec.stop_token_ids),
        "calls are read by": codec.tool_parser,
        "call ids": {"plain": "any", "nine": "nine letters or digits", "functions": "functions.NAME:NUMBER"}[form.ids],
        "arguments are given as": {"mapping": "a mapping", "text": "JSON text"}[form.arguments],
        "a call without text has": {"empty": "empty content", "null": "null content"}[form.absent],
        "thoughts": f"in {form.reasoning}" if codec.supports_reasoning else "the template has no place for them",
        "a greeting by the assistant": {"kept": "is kept", "left_out": "is left out of the prompt"}[form.greeting],
        "earlier turns": "are rewritten: history mode template" if codec.rewrites_history else "stay as sampled",
        "the date in prompts": codec.date or "none",
        "template arguments": ", ".join(f"{k}={v}" for k, v in codec.template_arguments.items()) or "none",
        "tokenizer, template": f"{codec.tokenizer_fingerprint}, {codec.template_fingerprint}",
    }
    if codec.learned.grammar is not None:
        rows |= _written(codec, codec.learned.grammar)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _ending(ending: Ending) -> str:
    if not ending.own:
        return f"nothing of its own; {ending.sampled} of the next message is sampled"
    changed = "" if ending.in_history == ending.sampled else f", and {ending.in_history} once messages follow"
    return f"{ending.sampled}{changed}"


def _written(codec: ChatCodec, grammar: Grammar) -> dict[str, str]:
    """How the template writes thoughts and calls."""

    def shown(marked: str | None) -> str:
        return repr(codec.control.unmark(marked or ""))

    openings = grammar.after_thought or grammar.bare
    assert openings is not None, "a grammar has one of them"
    form = grammar.call
    if isinstance(form, JsonObject):
        call = f"a JSON object with {form.name_key} and {form.arguments_key}"
    elif isinstance(form, NameThenJson):
        call = f"name, {shown(form.after_name)}, arguments as JSON"
    else:
        call = "name, then each argument by itself, typed by the tool's schema"
    rows = {"a call is": call, "before the first call": shown(openings.calls), "after the last": shown(grammar.end)}
    rows["between calls"] = "one call a turn" if grammar.between is None else shown(grammar.between)
    if grammar.thinks:
        opened = shown(grammar.thought_open) if grammar.thought_open else "the prompt's end"
        rows["a thought stands between"] = f"{opened} and {shown(grammar.thought_close)}"
    return rows


def _specimen(codec: ChatCodec) -> Table:
    table = Table("loss mask", "tokens", "text", title="A conversation in its tokens")
    for piece in conversation(codec):
        text = Text(codec.decode(piece.token_ids), style="bold" if piece.sampled else "dim")
        table.add_row(str(int(piece.sampled)), str(len(piece.token_ids)), text, end_section=True)
    return table


def _proof(codec: ChatCodec) -> Table:
    table = Table("what", "result", title="Proved against the tokenizer's own rendering")
    for what in codec.proof.passed:
        table.add_row(what, "the same tokens")
    for what, why in codec.proof.impossible.items():
        table.add_row(what, Text(f"the template does not write it: {why}"))
    for what, loss in codec.proof.losses.items():
        table.add_row(what, Text(f"lost: {loss}"))
    return table
