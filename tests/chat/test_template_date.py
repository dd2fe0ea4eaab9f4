"""A chat template that asks for today's date writes one date in all prompts, and trajectories record it."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.audit.verify import verify
from rollout_service.chat import template_date
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.template_date import dated
from rollout_service.config import RolloutConfig
from rollout_service.errors import CodecError, ConfigError
from rollout_service.preflight import with_date
from tests.support import episodes
from tests.support.family_templates import STYLES, tokenizer

OPENING = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}]
WRITES = "{{- '<|im_start|>system\\nToday is ' ~ strftime_now('%d %b %Y') ~ '\\n' ~ messages[0].content -}}"


def with_clock(style: str = "parameters") -> Any:
    """A tokenizer whose template writes today's date before the system prompt."""
    made = tokenizer(style)
    begin = "{{- '<|im_start|>system\\n' ~ messages[0].content"
    assert made.chat_template.startswith(begin)
    made.chat_template = made.chat_template.replace(begin, WRITES.removesuffix(" -}}"), 1)
    return made


def prompt(codec: ChatCodec) -> str:
    return codec.decode(codec.render(OPENING))


def test_the_date_of_the_settings_stands_in_every_prompt_on_any_day() -> None:
    codec = ChatCodec(with_clock(), name="dated", date="2026-01-31")
    assert codec.date == "2026-01-31"
    assert "Today is 31 Jan 2026\n" in prompt(codec)


def test_without_a_setting_it_is_the_day_on_which_the_codec_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = ChatCodec(with_clock(), name="dated")
    theirs = with_clock().apply_chat_template(OPENING, tokenize=False, add_generation_prompt=True)
    assert prompt(codec) == theirs
    monkeypatch.setattr(template_date, "today", lambda: "2031-01-01")
    before = codec.date
    codec.encode_turn("Past midnight.")
    assert prompt(codec) == theirs
    assert codec.date == before == datetime.date.today().isoformat()


def test_a_template_without_a_date_has_none_and_refuses_one() -> None:
    assert ChatCodec(tokenizer("parameters"), name="timeless").date == ""
    with pytest.raises(CodecError, match=r"policy\.date is 2026-01-31, but the chat template of 'timeless' writes no"):
        ChatCodec(tokenizer("parameters"), name="timeless", date="2026-01-31")


@pytest.mark.parametrize("value", ["yesterday", "20260131", "2026-02-30", ""])
def test_what_is_no_date_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.date.*is no date such as 2026-01-31"):
        episodes.settings(policy__date=value)


def test_a_start_fixes_the_date_for_all_processes_of_a_service(tmp_path: Path) -> None:
    with_clock().save_pretrained(tmp_path)
    config = episodes.settings(policy__tokenizer=str(tmp_path))
    codec = ChatCodec.of(config.policy)
    fixed = with_date(config, codec)
    assert fixed.policy.date == codec.date
    assert ChatCodec.of(fixed.policy).date == codec.date
    assert with_date(RolloutConfig(), episodes.codec()).policy.date is None


def test_an_episode_records_the_date_and_a_later_audit_is_clean(tmp_path: Path) -> None:
    with_clock().save_pretrained(tmp_path)
    config = episodes.settings(
        policy__tokenizer=str(tmp_path), policy__date="2026-01-31", policy__history="template", tasks__domain="telecom"
    )
    runner = episodes.EpisodeRunner(
        config, codec := ChatCodec.of(config.policy), episodes.LocalPolicy(config), episodes.event_loop()
    )
    trajectory = runner.run(episodes.request(episodes.task("telecom"), 0))
    assert (trajectory.reward, trajectory.provenance.template_date) == (1.0, "2026-01-31")
    assert "Today is 31 Jan 2026" in codec.decode(trajectory.segments[0].token_ids.tolist())
    assert [violations for _, violations in verify([trajectory])] == [[]]
    old = dataclasses.replace(trajectory.provenance, template_date="")
    trajectory.provenance = old
    assert [violations for _, violations in verify([trajectory])] == [[]]


def test_a_template_that_draws_words_at_random_is_refused() -> None:
    made = tokenizer("parameters")
    made.chat_template = made.chat_template.replace(
        "messages[0].content", "messages[0].content ~ (range(100000) | random)", 1
    )
    with pytest.raises(CodecError, match="renders the same conversation otherwise each time"):
        ChatCodec(made, name="dice")


DIRECTIVES = st.sampled_from([f"%{letter}" for letter in "YmdBbAayjHIMSpFTeuw%"])


@given(
    st.lists(DIRECTIVES | st.sampled_from([" ", "-", "day ", "é", "Y", "'", '"', "\n"]), max_size=8).map("".join),
    st.dates(datetime.date(1970, 1, 1), datetime.date(2100, 1, 1)),
)
def test_a_date_is_written_as_the_clock_would_write_it(form: str, date: datetime.date) -> None:
    text = _TOKENIZER.apply_chat_template(
        OPENING, tokenize=False, chat_template=dated("{{- strftime_now(form) }}", date.isoformat()), form=form
    )
    assert text == datetime.datetime.combine(date, datetime.time()).strftime(form)


_TOKENIZER = tokenizer(next(iter(STYLES)))
