"""The chat templates of real model families, which may lie beside the checkout in `../shared/template_families`, or
where the variable TEMPLATE_FAMILIES says."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import transformers

from rollout_service.chat.codec import EMBEDDED_TOKENIZER

FOLDER = Path(os.environ.get("TEMPLATE_FAMILIES") or Path(__file__).parents[2].parent / "shared" / "template_families")


def families() -> dict[str, Any]:
    """The families by name; none where the folder is missing."""
    if not FOLDER.is_dir():
        return {}
    return dict(_module().FAMILIES)


@functools.cache
def _module() -> Any:
    """`families.py` of that folder, under a name of its own: this package is called families, too."""
    sys.path.append(str(FOLDER))  # it imports its neighbours
    spec = importlib.util.spec_from_file_location("shared_families", FOLDER / "families.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def real_tokenizer(name: str) -> Any:
    """The family's tokenizer with its real vocabulary, where one can be had."""
    return _module().build(name)


def small_tokenizer(name: str) -> Any:
    """The family's control tokens and chat template on the embedded tokenizer, which is made in no time."""
    family = families()[name]
    made = transformers.PreTrainedTokenizerFast.from_pretrained(EMBEDDED_TOKENIZER)
    special = [*family.tokens.special, *family.tokens.special_rstrip]
    made.add_special_tokens({"additional_special_tokens": special})
    made.add_tokens(list(family.tokens.plain))
    made.eos_token = family.eos
    if family.bos:
        made.bos_token = family.bos
    made.chat_template = (FOLDER / "jinja" / f"{family.template}.jinja").read_text(encoding="utf8")
    return made
