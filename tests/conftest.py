"""Fixtures that several test modules share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout_service.chat import EMBEDDED_TOKENIZER, ChatCodec

pytest_plugins = ["tests.support.services"]

SHARED = Path(__file__).parents[1].parent / "shared"
"""Real tokenizers and chat templates, which may lie beside the checkout."""

EXTENDING = ("Qwen2.5-7B-Instruct", "Qwen3-4B-Instruct-2507")
REWRITING = ("Qwen3-0.6B", "Qwen3-4B-Thinking-2507")


def _shared(path: str) -> Path:
    if not (SHARED / path).exists():
        pytest.skip(f"needs {SHARED / path}: real model data is not part of the repository")
    return SHARED / path


@functools.cache
def _load_codec(name: str) -> ChatCodec:
    return ChatCodec.load(None if name == "embedded" else str(_shared(f"tokenizers/{name}")))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Gives the path of real model data; skips the test where there is none."""
    return _shared


@pytest.fixture(scope="session")
def load_codec() -> Callable[[str], ChatCodec]:
    """Gives the codec of `embedded` or of a real model, loaded once."""
    return _load_codec


@pytest.fixture(scope="session")
def embedded() -> ChatCodec:
    """The codec of the tokenizer that ships with the package."""
    return _load_codec("embedded")


@pytest.fixture(scope="session")
def forgetful() -> ChatCodec:
    """The embedded tokenizer with a template that shows thinking in the newest message only."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    content = "{{- message.content or '' -}}"
    thinking = "{{- '<think>\n' ~ message.reasoning_content ~ '\n</think>\n' -}}"
    assert content in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(
        content, "{%- if message.reasoning_content is defined and loop.last -%}" + thinking + "{%- endif -%}" + content
    )
    return ChatCodec(tokenizer, name="forgetful")


@pytest.fixture(scope="session", params=["embedded", *EXTENDING, *REWRITING])
def codec(request: pytest.FixtureRequest) -> ChatCodec:
    """Each codec in turn: the embedded one and the real ones."""
    return _load_codec(request.param)


@pytest.fixture(scope="session", params=EXTENDING)
def extending(request: pytest.FixtureRequest) -> ChatCodec:
    """A real codec whose template only ever adds to history."""
    return _load_codec(request.param)


@pytest.fixture(scope="session", params=REWRITING)
def rewriting(request: pytest.FixtureRequest) -> ChatCodec:
    """A real codec whose template drops earlier thinking."""
    return _load_codec(request.param)
