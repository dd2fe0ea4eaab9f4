"""The page in a real browser: an open episode, tab by tab."""

from __future__ import annotations

import pytest

from rollout_service.record import storage
from rollout_service.record.ledger import TokenLedger
from rollout_service.viewer.writer import write_page
from tests.support.browser import CHROMIUM
from tests.support.trajectories import make_generation, make_trajectory
from tests.viewer.browsing import HOSTILE, SHALOM, choose, count, opened, shown, text
from tests.viewer.many import many_episodes

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)")


def test_a_conversation_shows_calls_exactly_and_the_tokens_tell_policy_from_context(browser, pages):
    opened(browser, pages["some"])
    assert '"order_id": 12345678901234567890' in text(browser, ".call .code")
    assert "valid" in text(browser, ".call-head")
    assert "✎wrote❝1 required text" in text(browser, ".message.policy header").replace("\n", "")
    assert browser.ask("document.querySelector('.message.policy .badge.good').title") == "First to say: on its way"
    assert text(browser, ".message-facts:not(:empty)") == "turn 1 · 4 tokens · v0 · 0.500 s"
    assert text(browser, ".message.tool .code") == '{\n  "status": "on its way"\n}'
    browser.press("3")
    shown(browser, "0 Tokens")
    assert browser.ask("document.querySelectorAll('.segment .token.policy').length") == 8
    assert browser.ask("document.querySelectorAll('.segment .token.context').length") == 5
    marks = browser.ask("[...document.querySelectorAll('.segment .version')].map((mark) => mark.textContent)")
    assert marks == ["v0", "v1"]
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
    assert "queue 0.625 s policy 1.88 s" in text(browser, ".timeline .legend"), "before the start and in a turn"
    rows = browser.ask("[...document.querySelectorAll('.timeline tbody tr')].map((row) => row.innerText.trim())")
    assert rows[1].split("\t") == ["Turn 1", "0.125 s", "0.375 s", "–", "–"]
    assert rows[2].split("\t") == ["Turn 2", "–", "0.500 s", "–", "–"]


def test_a_refused_call_a_user_s_flaw_and_a_turn_without_a_message_stand_in_the_conversation(browser, pages):
    opened(browser, pages["some"], "#episode=2&tab=Conversation")
    assert "user flaw: transfer ignored" in text(browser, ".message.user header")
    assert "given, not sampled" in text(browser, ".message.other header")
    assert "refused" in text(browser, ".call-head")
    assert "error" in text(browser, ".message.tool header")
    assert text(browser, ".message.tool .code") == '{\n  "said": "a \\"b, c\\"",\n  "seats": []\n}'
    assert browser.ask("document.querySelectorAll('.message.lost').length") == 2


def test_what_cannot_be_read_says_so_in_its_place(browser, tmp_path):
    path, page = tmp_path / "damaged.jsonl", tmp_path / "damaged.html"
    storage.write(path, [make_trajectory()])
    path.write_text(path.read_text() + '{"schema_version": 1}\n')
    write_page([path], page)
    opened(browser, page, "#episode=1&tab=Conversation")
    assert "schema version 1" in text(browser, ".unreadable .problem")
    assert "damaged.jsonl: 1 record cannot be read" in text(browser, "#notices").replace("  ", " ")
    page.write_text(page.read_text().partition('<script type="text/plain" id="block-')[0])
    opened(browser, page)
    assert "This page is not whole: its part block-0 is missing" in text(browser, "#detail")


def test_long_context_is_folded_and_a_button_shows_it(browser, tmp_path):
    ledger = TokenLedger(list(range(400)))
    ledger.append_policy(make_generation(), tool_calls=[], seconds=0.5)
    page = many_episodes(tmp_path / "long.html", 1, make_trajectory(segments=[ledger.to_segment()]))
    opened(browser, page, "#episode=0&tab=Tokens")
    context = "document.querySelectorAll('.segment .token.context').length"
    assert text(browser, ".span .more") == f"… {400 - browser.ask(context)} more context tokens …"
    browser.ask("document.querySelector('.span .more').click()")
    assert browser.ask(context) == 400


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
    choose(browser, "reward", "0")
    browser.ask("[...document.querySelectorAll('.column button')].find((found) => !found.disabled).click()")
    shown(browser, "1 Group")
    assert count(browser) == "6 in the list", "filters that it does not pass are cleared"


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
