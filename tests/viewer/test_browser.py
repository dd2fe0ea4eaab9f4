"""The page in a real browser: the list of episodes, its filters and search, and the keys."""

from __future__ import annotations

import pytest

from tests.support.browser import CHROMIUM
from tests.viewer.browsing import choose, count, opened, shown, text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)")


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


def test_the_list_has_an_order_and_buttons_take_filters_back(browser, pages):
    opened(browser, pages["some"])
    order, hidden = "document.getElementById('order')", "document.getElementById('reset').hidden"
    browser.ask(f"{order}.value = 'lowest reward', {order}.dispatchEvent(new Event('change'))")
    rows = browser.ask("[...document.querySelectorAll('.row')].map((row) => row.id)")
    assert rows == [f"row-{number}" for number in (0, 1, 2, 4, 5, 3)], "the one without a reward is last"
    assert browser.ask(hidden)
    browser.press("g")
    assert text(browser, "#group-chip") == "Only group 0 ✕"
    browser.ask("document.getElementById('group-chip').click()")
    assert (count(browser), browser.ask(hidden)) == ("6 in the list", True)
    choose(browser, "domain", "airline")
    assert not browser.ask(hidden)
    browser.ask("document.getElementById('reset').click()")
    assert (count(browser), browser.ask(hidden)) == ("6 in the list", True)


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
    violation = "[...document.querySelectorAll('.violation')].indexOf(document.activeElement)"
    for keys, place in (("n", 0), ("nn", 2), ("N", 1)):
        browser.press(*keys)
        assert browser.ask(violation) == place
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
    opened(browser, pages["some"])
    assert browser.ask("document.documentElement.dataset.theme") == "dark", "a reload keeps what the reader chose"
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
    browser.press("/", "q")
    assert count(browser).startswith("0 of 6"), "conversations were not searched for the new text yet"
    assert text(browser, "#search-state") == ""
    browser.press("Escape", "c")
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
    browser.ask("document.querySelector('.row').dispatchEvent(new MouseEvent('dblclick'))")
    assert browser.ask(inside)
    browser.press("Escape", "Enter", "j", "]")
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


def test_ten_thousand_episodes_are_listed_by_the_rows_in_view(browser, pages):
    opened(browser, pages["many"])
    assert count(browser) == "10,000 in the list"
    assert browser.ask("document.querySelectorAll('.row').length") < 40
    browser.press("PageDown")
    in_view = browser.ask("Math.floor(document.getElementById('list').clientHeight / 62)")
    assert browser.ask("document.querySelector('.row.current').id") == f"row-{in_view - 1}"
    browser.press("End")
    shown(browser, "9999 ")
    assert browser.ask("document.querySelector('.row.current').id") == "row-9999"
    choose(browser, "reward", "1")
    assert count(browser).startswith("5,000 of 10,000 · mean reward 1.000")
    assert browser.ask("document.getElementById('list').scrollTop") > 0, "the chosen episode stays in view"
