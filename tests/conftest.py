"""Fixtures that several test modules share."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

import rollout_service.logs as logs
from rollout_service.chat.codec import EMBEDDED_TOKENIZER, ChatCodec
from tests.support import episodes

pytest_plugins = ["tests.support.services"]

# A busy machine must not fail a test: an example may take as long as it takes.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Of every cluster that a test starts, an agent would look through all processes every few seconds.
os.environ["REPORTER_UPDATE_INTERVAL_MS"] = "600000"

gc.disable()  # until everything is imported, which makes objects by the million and no garbage

SLOW = (
    "deploy/test_sglang_serving",
    "deploy/test_learn",
    "deploy/test_job",
    "tau2/test_base_tasks",
    "deploy/test_user_smollm2",
    "test_client",
    "families/test_more_families",
    "chaos/test_history",
    "deploy/test_http_serving",
    "deploy/test_model_serving",
    "tau2/test_episode",
    "families/test_families",
    "test_endings",
    "adapters/test_trl",
    "cli/test_cli",
    "adapters/test_verl_loop",
    "tau2/test_llm_user",
    "tau2/test_evaluation",
    "deploy/test_gateway",
    "chat/test_codec",
    "deploy/test_own_ray",
    "record/test_storage",
    "audit/test_verify_damage",
    "deploy/test_staging",
    "deploy/test_launch",
    "test_redaction",
    "record/test_batch",
    "deploy/test_gateway_reopen",
    "config/test_secrets",
    "deploy/test_user_simulator",
    "journal/test_restart",
)
"""Modules that take the longest, the longest first: two workers share the modules, and none should start these last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow modules first."""
    rank = {name: position for position, name in enumerate(SLOW)}
    folder = Path(__file__).parent
    assert all((folder / f"{name}.py").exists() for name in SLOW), "a module of SLOW was moved"
    items.sort(key=lambda item: rank.get(str(item.path.relative_to(folder).with_suffix("")), len(rank)))


def pytest_collection_finish() -> None:
    """From now on garbage is collected, but what the imports made is not looked through each time. It is collected more
    rarely than by default, as in environment actors: half of the time that it takes is saved."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


@pytest.fixture(autouse=True)
def _no_line_is_left_out() -> None:
    """The log's rate limit counts within one test only."""
    logs.rate_limit.reset()


SHARED = Path(__file__).parents[1].parent / "shared"
"""Real tokenizers and chat templates, which may lie beside the checkout."""

EXTENDING = ("Qwen2.5-7B-Instruct", "Qwen3-4B-Instruct-2507")
"""Real models whose chat template only ever adds to history."""

REWRITING = ("Qwen3-0.6B", "Qwen3-4B-Thinking-2507")
"""Real models whose chat template drops earlier thinking."""

FORGETFUL = {"forgetful": "message.reasoning_content is defined", "opening": "message.role == 'assistant'"}
"""The embedded tokenizer made to show thinking in the newest message only, and when. As the Qwen Thinking models do,
`opening` opens the thinking in its generation prompt."""


def _shared(path: str) -> Path:
    if not (SHARED / path).exists():
        pytest.skip(f"needs {SHARED / path}: real model data is not part of the repository")
    return SHARED / path


def _forgetful(name: str) -> ChatCodec:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    content, generation = "{{- message.content or '' -}}", "{{- '<|im_start|>assistant\\n' -}}"
    thinking = (
        f"{{%- if loop.last and {FORGETFUL[name]} -%}}"
        "{{- '<think>\\n' ~ (message.reasoning_content or '') ~ '\\n</think>\\n' -}}{%- endif -%}"
    )
    assert content in tokenizer.chat_template
    assert generation in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(content, thinking + content)
    if name == "opening":
        tokenizer.chat_template = tokenizer.chat_template.replace(generation, generation + "{{- '<think>\\n' -}}")
    return ChatCodec(tokenizer, name=name)


@functools.cache
def _load_codec(name: str) -> ChatCodec:
    if name in FORGETFUL:
        return _forgetful(name)
    return episodes.codec(None if name == "embedded" else str(_shared(f"tokenizers/{name}")))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Gives the path of real model data; skips the test where there is none."""
    return _shared


@pytest.fixture(scope="session")
def load_codec() -> Callable[[str], ChatCodec]:
    """Gives the codec of that name, loaded once."""
    return _load_codec


@pytest.fixture(scope="session")
def embedded() -> ChatCodec:
    """The codec of the tokenizer that ships with the package."""
    return _load_codec("embedded")


@pytest.fixture(scope="session", params=["embedded", *FORGETFUL, *EXTENDING, *REWRITING])
def codec(request: pytest.FixtureRequest) -> ChatCodec:
    """Each codec in turn."""
    return _load_codec(request.param)


@pytest.fixture(scope="session", params=["embedded", *EXTENDING])
def extending(request: pytest.FixtureRequest) -> ChatCodec:
    """A codec whose template only ever adds to history."""
    return _load_codec(request.param)


@pytest.fixture(scope="session", params=[*FORGETFUL, *REWRITING])
def rewriting(request: pytest.FixtureRequest) -> ChatCodec:
    """A codec whose template drops earlier thinking."""
    return _load_codec(request.param)
