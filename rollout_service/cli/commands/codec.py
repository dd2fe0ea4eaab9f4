"""`codec`: what the service learns of a model's chat template, and whether it can be proved.

Invariant: it loads a tokenizer and nothing else; the exit code is 0 only if the codec was proved.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rollout_service.cli.options import read_template_arguments


def codec(
    model: Annotated[
        str | None, typer.Argument(help="Folder or hub name of a tokenizer. Left out: the embedded one.")
    ] = None,
    template_arguments: Annotated[
        list[str] | None,
        typer.Option(help="What the chat template is given, e.g. enable_thinking=false. Repeat it for more."),
    ] = None,
    tool_parser: Annotated[str, typer.Option(help="As policy.tool_parser.")] = "auto",
) -> None:
    """Prove a model's chat template, and show what was learned of it."""
    from rollout_service.chat.codec import ChatCodec
    from rollout_service.cli.codec_report import print_codec

    arguments = read_template_arguments(template_arguments)
    print_codec(ChatCodec.load(model, tool_parser=tool_parser, template_arguments=arguments))
