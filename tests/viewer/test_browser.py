"""The page in a real browser: what a reader sees, clicks and types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import Fault, FaultKind
from rollout_service.record import storage
from rollout_service.record.trajectory import Outcome, Provenance, TaskRef, Trajectory, UserReview
from rollout_service.viewer.writer import write_page
from tests.support.browser import CHROMIUM, Browser
from tests.support.trajectories import make_member, make_segment
from tests.viewer.many import many_episodes

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)")

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
HIDDEN = "\x00 \x1b[31m \u202e \ud800 \udfff"
"""A null, an escape, a mark that turns the direction, and two halves of surrogate pairs."""

SHALOM = "\u05e9\u05dc\u05d5\u05dd"


def stored() -> list[Trajectory]:
    """Three groups of two: a mixed one of retail, one of airline with a fault, and one with hostile text."""
    retail = [make_member(0, sample, reward=float(sample), messages=conversation()) for sample in range(2)]
    task = TaskRef("airline", "test", "7", 0)
    fault = Fault(FaultKind.USER_SIMULATOR, "RateLimitError", "too many requests", True)
    ended = {"outcome": Outcome.ABORTED, "termination_reason": "fault", "reward": None, "fault": fault}
    airline = [make_member(1, 0, task=task), make_member(1, 1, task=task, segments=[], **ended)]
    words = [{"role": "user", "content": text} for text in (HOSTILE, HIDDEN, SHALOM)]
    odd = [make_member(2, sample, messages=words) for sample in range(2)]
    odd[0].trajectory_id = HOSTILE
    codec = ChatCodec.load()
    ids = np.array(codec.encode_written("One word and some more."), np.int32)
    for trajectory in retail:
        (segment,) = trajectory.segments
        segment.token_ids[:] = np.resize(ids, len(segment.token_ids))
        segment.turns[0].message_index = 1
        trajectory.provenance = Provenance(tokenizer="embedded", tokenizer_fingerprint=codec.tokenizer_fingerprint)
    retail[1].messages.append({"role": "tool", "content": "hay\n" * 500 + "a needle"})
    retail[0].reward_info = checks()
    retail[0].user_review = UserReview("a model", {"errors": [error()], "summary": "A mistake."})
    retail[1].user_review = UserReview("a model", None, "it timed out")
    retail[1].segments.append(make_segment())  # versions begin again, which verify finds
    return retail + airline + odd


def conversation() -> list[dict[str, Any]]:
    call = {"id": "1", "name": "find_order", "arguments": {"order_id": 12345678901234567890}, "requestor": "assistant"}
    return [
        {"role": "user", "content": "Where is my zebra?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "id": "1", "content": '{"status": "on its way"}', "requestor": "assistant", "error": False},
    ]


def checks() -> dict[str, Any]:
    """An evaluator's record: the database is wrong, one action has other arguments, one of two facts was told."""
    action = {"action_id": "1", "requestor": "assistant", "name": "find_order", "arguments": {"order_id": "#W1"}}
    told = [{"info": "on its way", "met": True}, {"info": "tomorrow", "met": False}]
    return {
        "reward": 0.0,
        "db_check": {"db_match": False, "db_reward": 0.0},
        "action_checks": [{"action": action, "action_match": False, "action_reward": 0.0}],
        "communicate_checks": told,
        "reward_basis": ["DB", "COMMUNICATE"],
        "reward_breakdown": {"DB": 0.0, "COMMUNICATE": 0.0},
    }


def error() -> dict[str, Any]:
    return {"error_tags": ["hallucination"], "severity": "critical", "turn_idx": 0, "reasoning": "He has no zebra."}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    storage.write(folder / "some.jsonl", stored())
    write_page([folder / "some.jsonl"], folder / "some.html")
    return {"some": folder / "some.html", "many": many_episodes(folder / "many.html", 10_000)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        one.resize(1366, 768)
        yield one
        assert one.complaints == []
        assert {url for url in one.requests if not url.startswith(("file://", "about:"))} == set()


def opened(browser: Browser, page: Path, fragment: str = "") -> None:
    browser.open(page, fragment)
    browser.wait_for("document.documentElement.dataset.ready === 'list'")
    shown(browser, f"{fragment.partition('episode=')[2].partition('&')[0] or 0} ")


def shown(browser: Browser, what: str) -> None:
    """Wait until the open episode is this one: its number, and its tab."""
    browser.wait_for(f"document.getElementById('detail').dataset.shown.startsWith({what!r})")


def text(browser: Browser, selector: str) -> str:
    return str(browser.ask(f"document.querySelector({selector!r}).textContent"))


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose a value of a filter as a reader does: the select then says that it changed."""
    choice = f"document.getElementById('filter-{name}')"
    browser.ask(f"{choice}.value = {value!r}, {choice}.dispatchEvent(new Event('change'))")


def count(browser: Browser) -> str:
    return text(browser, "#count")


def test_filters_narrow_the_list_and_the_first_episode_that_passes_opens(browser, pages):
    opened(browser, pages["some"])
    assert count(browser) == "6 in the list"
    choose(browser, "domain", "airline")
    assert count(browser).startswith("2 of 6")
    shown(browser, "2 ")
    choose(browser, "fault", "user_simulator")
    assert count(browser).startswith("1 of 6 · mean reward –")
    shown(browser, "3 ")
    assert "Fault of the user simulator: RateLimitError: too many requests" in text(browser, ".message.end")
    assert "which is not a reward of 0" in text(browser, ".message.end")
    browser.press("c")
    assert count(browser) == "6 in the list"
    for name, value, passing in (
        ("reward", "0", 1),
        ("outcome", "aborted", 1),
        ("kind", "mixed", 2),
        ("task", "airline/7", 2),
    ):
        choose(browser, name, value)
        assert count(browser).startswith(f"{passing} of 6"), name
        browser.press("c")


def test_keys_move_through_episodes_tabs_and_messages(browser, pages):
    opened(browser, pages["some"])
    browser.press("j")
    shown(browser, "1 Conversation")
    browser.press("k")
    shown(browser, "0 ")
    browser.press("ArrowDown", "3")
    shown(browser, "1 Tokens")
    browser.press("Escape")
    assert browser.ask("document.activeElement.id") == "list"
    browser.press("1")
    shown(browser, "1 Conversation")
    browser.press("j")
    assert browser.ask("document.activeElement.dataset.message") == "0"
    browser.press("j", "j")
    assert browser.ask("document.activeElement.dataset.message") == "2"
    browser.press("]")
    shown(browser, "2 ")
    browser.press("Escape", "g")
    assert count(browser).startswith("2 of 6")
    browser.press("g")
    assert count(browser) == "6 in the list"
    browser.press("?")
    assert browser.ask("document.getElementById('help').open")
    browser.press("Escape")
    browser.wait_for("!document.getElementById('help').open")
    browser.press("t", "t")
    assert browser.ask("document.documentElement.dataset.theme") == "dark"
    browser.press("t")
    assert "theme" not in browser.ask("Object.keys(document.documentElement.dataset)")


def test_the_search_finds_fields_as_one_types_and_conversations_on_enter(browser, pages):
    opened(browser, pages["some"])
    browser.press("/", *"zebra")
    assert count(browser).startswith("0 of 6")
    shown(browser, "none")
    assert "No episode passes" in text(browser, "#detail")
    browser.press("Enter")
    browser.wait_for("document.getElementById('count').textContent.startsWith('2 of 6')")
    assert text(browser, "#search-state") == "in conversations"
    marked = "[...CSS.highlights.get('found')].map((range) => range.toString())"
    assert browser.wait_for(f"CSS.highlights.get('found') && {marked}") == ["zebra"]
    browser.press("c")
    assert count(browser) == "6 in the list"


def test_what_a_search_found_holds_while_other_filters_change(browser, pages):
    opened(browser, pages["some"])
    choose(browser, "domain", "airline")
    browser.press("/", *"zebra", "Enter")
    browser.wait_for("document.getElementById('search-state').textContent === 'in conversations'")
    assert count(browser).startswith("0 of 6")
    choose(browser, "domain", "")
    assert count(browser).startswith("2 of 6"), "retail's conversations hold it"
    browser.press("c")


def test_a_search_unfolds_what_hides_the_searched_text(browser, pages):
    opened(browser, pages["some"])
    browser.press("/", *"needle", "Enter")
    browser.wait_for("document.getElementById('count').textContent.startsWith('1 of 6')")
    shown(browser, "1 ")
    marked = "[...CSS.highlights.get('found')].map((range) => range.toString())"
    assert browser.wait_for(f"CSS.highlights.get('found') && {marked}") == ["needle"]
    browser.press("c")


def test_the_focus_stays_in_an_open_episode_when_another_one_or_another_tab_is_shown(browser, pages):
    inside = "document.getElementById('detail').contains(document.activeElement)"
    opened(browser, pages["some"])
    browser.press("Enter", "j", "]")
    shown(browser, "1 ")
    assert browser.ask(inside)
    browser.press("j")
    assert browser.ask("document.activeElement.dataset.message") == "0", "a message, and not another episode"
    browser.ask("(() => { const tab = document.querySelectorAll('[role=tab]')[1]; tab.focus(); tab.click() })()")
    shown(browser, "1 Reward")
    assert browser.ask(inside)


def test_arrows_move_between_the_tabs_when_one_has_the_focus(browser, pages):
    opened(browser, pages["some"])
    browser.ask("document.querySelector('[role=tab][aria-selected=true]').focus()")
    assert browser.ask("location.hash") == "#episode=0&tab=Conversation"
    for key, tab in (("ArrowRight", "Reward"), ("ArrowLeft", "Conversation"), ("ArrowLeft", "Record")):
        browser.press(key)
        shown(browser, f"0 {tab}")
        browser.wait_for("document.activeElement.getAttribute('aria-selected') === 'true'")
        assert tab in browser.ask("document.activeElement.textContent")
        assert browser.ask("location.hash") == f"#episode=0&tab={tab}", "a reload shows it again"
        assert browser.ask("document.querySelector('[role=tabpanel]').ariaLabel") == tab


def test_page_keys_scroll_an_open_episode(browser, pages):
    browser.resize(1366, 300)
    opened(browser, pages["some"])
    top = "document.querySelector('.tab-body').scrollTop"
    browser.press("Enter", "PageDown")
    assert (below := browser.ask(top)) > 0
    browser.press("End")
    assert (end := browser.ask(top)) >= below
    browser.press("PageUp")
    assert browser.ask(top) < end
    browser.press("Home")
    assert browser.ask(top) == 0
    browser.resize(1366, 768)


def test_a_conversation_shows_calls_exactly_and_the_tokens_tell_policy_from_context(browser, pages):
    opened(browser, pages["some"])
    assert '"order_id": 12345678901234567890' in text(browser, ".call .code")
    assert "valid" in text(browser, ".call-head")
    assert text(browser, ".message-facts:not(:empty)") == "turn 1 · 4 tokens · v0 · 0.500 s"
    assert text(browser, ".message.tool .code") == '{\n  "status": "on its way"\n}'
    browser.press("3")
    shown(browser, "0 Tokens")
    assert browser.ask("document.querySelectorAll('.segment .token.policy').length") == 8
    assert browser.ask("document.querySelectorAll('.segment .token.context').length") == 5
    styles = "(name) => getComputedStyle(document.querySelector('.segment .token.' + name)).textDecorationLine"
    assert browser.ask(f"({styles})('policy')") == "underline"
    assert browser.ask(f"({styles})('context')") == "none"
    browser.press("ArrowRight")
    facts = text(browser, ".token-facts")
    assert "sampled (loss mask 1)" in facts
    assert "weight version 0" in facts
    browser.ask(
        "document.querySelector('.segment .token.context').dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))"
    )
    assert "context (loss mask 0)" in text(browser, ".token-facts")
    browser.press("Escape", "j")
    shown(browser, "1 Tokens")
    assert "Forks from segment 1" in text(browser, ".fork")
    assert "a weight version decreases" in text(browser, ".violation")
    browser.press("n")
    assert "a weight version decreases" in browser.ask("document.activeElement.textContent")
    browser.press("4")
    shown(browser, "1 Timeline")
    assert "user 2.00 s" in text(browser, ".timeline .legend")


def test_an_episode_without_tokens_says_so(browser, pages):
    opened(browser, pages["some"], "#episode=3&tab=Tokens")
    shown(browser, "3 Tokens")
    assert text(browser, ".tab-body") == "The policy was never asked, so there are no tokens."


def test_each_check_of_the_reward_stands_by_itself(browser, pages):
    opened(browser, pages["some"], "#episode=0&tab=Reward")
    shown(browser, "0 Reward")
    rows = browser.ask("[...document.querySelectorAll('.checks tr')].map((found) => found.innerText)")
    words = ["".join(row.split()) for row in rows]
    assert words[0] == "✗notmetThedatabasesareasthetaskwantsthemintheend."
    assert words[1] == '≠otherargumentsfind_order{"order_id":"#W1"}'
    assert words[2:4] == ["✓metonitsway", "✗notmettomorrow"]
    assert words[4] == "☹criticalhallucination(turn_idx0)Hehasnozebra."
    assert text(browser, ".reward-view").count("not checked, or the task has none") == 2
    browser.press("]")
    shown(browser, "1 Reward")
    assert "no review: it timed out" in text(browser, ".reward-view")


def test_a_group_stands_side_by_side(browser, pages):
    opened(browser, pages["some"], "#episode=0&tab=Group")
    shown(browser, "0 Group")
    places = browser.ask("[...document.querySelectorAll('.column')].map((found) => found.getBoundingClientRect().top)")
    assert len(places) == 2
    assert places[0] == places[1]
    browser.ask("[...document.querySelectorAll('.column button')].find((found) => !found.disabled).click()")
    shown(browser, "1 Group")


def test_a_large_group_shows_the_open_trajectory_and_those_around_it(browser, tmp_path):
    opened(browser, many_episodes(tmp_path / "large.html", 40, group_size=40), "#episode=38&tab=Group")
    shown(browser, "38 Group")
    columns = browser.ask("[...document.querySelectorAll('.column')].map((found) => found.ariaLabel)")
    assert columns == [f"Sample {number}" for number in range(24, 40)]
    assert text(browser, ".column.current strong") == "#38 "


def test_hostile_text_is_shown_as_text(browser, pages):
    opened(browser, pages["some"], "#episode=4&tab=Conversation")
    hostile, hidden, shalom = browser.ask("[...document.querySelectorAll('.message .text')].map((e) => e.textContent)")
    assert hostile == HOSTILE
    assert hidden == "U+0000 U+001B[31m U+202E U+D800 U+DFFF"
    assert shalom == SHALOM
    assert browser.ask("document.querySelectorAll('.message .text')[2].dir") == "auto"
    assert text(browser, ".detail-facts .id") == HOSTILE
    assert browser.ask("document.title") == "some.jsonl – trajectories"
    assert browser.ask("document.querySelectorAll('img').length") == 0


def test_ten_thousand_episodes_are_listed_by_the_rows_in_view(browser, pages):
    opened(browser, pages["many"])
    assert count(browser) == "10,000 in the list"
    assert browser.ask("document.querySelectorAll('.row').length") < 40
    browser.press("End")
    shown(browser, "9999 ")
    assert browser.ask("document.querySelector('.row.current').id") == "row-9999"
    choose(browser, "reward", "1")
    assert count(browser).startswith("5,000 of 10,000 · mean reward 1.000")
    assert browser.ask("document.getElementById('list').scrollTop") > 0, "the chosen episode stays in view"


def test_dark_pages_follow_the_system_and_text_has_contrast_in_both(browser, pages):
    for dark in (False, True):
        browser.resize(1366, 768, dark=dark)
        opened(browser, pages["some"])
        ratios = browser.ask(CONTRASTS)
        assert len(ratios) > 10
        assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    browser.resize(1366, 768)


CONTRASTS = """(() => {
  const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const behind = (found) => {
    for (let at = found; at; at = at.parentElement) {
      const color = numbers(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const ratios = {};
  for (const found of document.querySelectorAll("body *")) {
    if (!found.offsetParent || ![...found.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [light(numbers(getComputedStyle(found).color)), light(behind(found))];
    const name = `${found.tagName} ${found.className}`;
    ratios[name] = Math.min(ratios[name] ?? 99, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return ratios;
})()"""
